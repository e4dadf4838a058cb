"""The members of an ensemble inside one prompt: how their tensors are named, and each as a prompt of its own.

Owns: the names `member.{k}.NAME`, and taking a prompt apart by them. Must not know: bytes, what tensors are made of.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from prompt_store.manifest import Manifest

T = TypeVar("T")


def member_tensor(member: int, name: str) -> str:
    """What the file calls the tensor `name` of a member; they are counted from 0."""
    return f"member.{member}.{name}"


def bare_names(names: Iterable[str]) -> set[str]:
    """The names without their members; what is not named as a member's is left out."""
    parts = (name.split(".", 2) for name in names)
    return {part[2] for part in parts if len(part) == 3 and part[0] == "member"}


def split_members(
    manifest: Manifest, tensors: Mapping[str, T]
) -> tuple[tuple[Manifest, Mapping[str, T]], ...]:
    """Manifest and tensors of each member, as a file of this member alone would have them.

    A prompt that is no ensemble is its own only member.
    """
    if not manifest.members:
        return ((manifest, tensors),)
    parts = []
    for at, member in enumerate(manifest.members):
        alone = {"members": (), "calibration": member.calibration, "training": member.training}
        lead = member_tensor(at, "")
        own = {name.removeprefix(lead): one for name, one in tensors.items() if name.startswith(lead)}
        parts.append((manifest.model_copy(update=alone), own))
    return tuple(parts)
