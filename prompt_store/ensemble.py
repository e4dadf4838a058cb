"""Several prompt files of one task joined into the file of an ensemble.

Owns: in what prompts must agree to answer together, and what the joint file says. Must not know: how answers are
joined, backbones, stores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import JsonValue

from prompt_store.codec import decode_prompt, encode_prompt, version_of
from prompt_store.errors import IncompatiblePrompt, InvalidPrompt
from prompt_store.manifest import MAX_MEMBERS, Manifest, Member
from prompt_store.members import member_tensor, split_members
from prompt_store.prompt import Array

# A text is made into one row, which every member reads, and their scores are of the same labels: so they share
# whatever a manifest says, also what later formats will say, but for this. (`backbone` is compared by itself.)
_OWN: Final = frozenset({"backbone", "method", "calibration", "golden", "training", "members"})


@dataclass(frozen=True, slots=True)
class _Part:
    """One member with the name of the file that it comes from."""

    source: str
    manifest: Manifest
    tensors: Mapping[str, Array]
    version: str | None
    training: Mapping[str, JsonValue]


def join_prompts(files: Sequence[tuple[str, bytes]]) -> bytes:
    """The file whose members are the prompts of these files, in their order; `files` are names and bytes.

    Each member keeps its calibration, so that it answers in the ensemble as it does alone; a file that is an ensemble
    gives its members. Golden examples are those that every file has: what is right for each member is right for
    their mean. InvalidPrompt for a file that is none, for too few or too many members, or for one prompt twice;
    IncompatiblePrompt says in what two files differ. Both name the file.
    """
    parts, manifests = _parts(files)
    if not 2 <= len(parts) <= MAX_MEMBERS:
        raise InvalidPrompt(f"an ensemble has 2 to {MAX_MEMBERS} members, got {len(parts)}")
    first = parts[0]
    for part in parts[1:]:
        _agree(first, part)
    seen: dict[str | None, str] = {}
    for part in parts:
        if part.version is not None and part.version in seen:
            raise InvalidPrompt(
                f"{part.source}: the same prompt as in {seen[part.version]}: it would count twice"
            )
        seen[part.version] = part.source
    shared = _in_all([part.training for part in parts])
    shared.pop("dev", None)  # each member's own score, be they equal: the ensemble's own nobody has measured
    joint = first.manifest.model_copy(
        update={
            "method": first.manifest.method
            if len({part.manifest.method for part in parts}) == 1
            else "mixed",
            "calibration": None,
            "golden": tuple(
                one for one in manifests[0].golden if all(one in other.golden for other in manifests)
            ),
            "training": shared,
            "members": tuple(
                Member(
                    calibration=part.manifest.calibration,
                    version=part.version,
                    training={key: value for key, value in part.training.items() if key not in shared},
                )
                for part in parts
            ),
        }
    )
    tensors = {
        member_tensor(at, name): tensor
        for at, part in enumerate(parts)
        for name, tensor in part.tensors.items()
    }
    return encode_prompt(joint, tensors)


def _parts(files: Sequence[tuple[str, bytes]]) -> tuple[list[_Part], list[Manifest]]:
    """Every member of every file, and the files' manifests."""
    parts: list[_Part] = []
    manifests: list[Manifest] = []
    for source, data in files:
        try:
            prompt = decode_prompt(data)
        except InvalidPrompt as error:
            raise type(error)(f"{source}: {error}") from None
        manifest = prompt.manifest
        manifests.append(manifest)
        versions = [member.version for member in manifest.members] or [version_of(data)]
        alone = split_members(manifest, prompt.tensors)
        for (own, tensors), version in zip(alone, versions, strict=True):
            parts.append(_Part(source, own, tensors, version, manifest.training | own.training))
    return parts, manifests


def _agree(first: _Part, other: _Part) -> None:
    """IncompatiblePrompt unless one row serves both."""
    one, two = first.manifest, other.manifest
    shared = [name for name in Manifest.model_fields if name not in _OWN]
    differ = [name for name in shared if getattr(one, name) != getattr(two, name)]
    if one.backbone.model_copy(update={"name": two.backbone.name}) != two.backbone:
        differ.insert(0, "backbone")
    if not differ and _shapes(first) != _shapes(other):
        differ.append("the tensors' names or shapes")
    if differ:
        raise IncompatiblePrompt(
            f"{other.source} cannot join {first.source}: they differ in {', '.join(differ)}, "
            "which the members of an ensemble share"
        )


def _shapes(part: _Part) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in part.tensors.items()}


def _in_all(records: Sequence[Mapping[str, Any]]) -> dict[str, JsonValue]:
    """What all of them say alike."""
    return {
        key: value
        for key, value in records[0].items()
        if all(key in record and record[key] == value for record in records)
    }
