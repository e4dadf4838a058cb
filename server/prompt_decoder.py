"""From a prompt file's bytes to a prompt that fits the backbone: every check that needs no forward.

Owns: the order of these checks. Must not know: where bytes come from, slots, the device. Blocking.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from prompt_store import Prompt, check_backbone, check_finite_in, decode_prompt
from server.errors import NotReady

if TYPE_CHECKING:
    from backbone import Backbone, RowEncoder

_OBJECTS: Final = 4096  # bytes of a decoded prompt's objects, beside what grows with the manifest


@dataclass(frozen=True, slots=True)
class Checked:
    """A prompt that passed every check that needs no forward; its tensors are views of the file's bytes."""

    prompt: Prompt
    encoder: RowEncoder


class PromptDecoder:
    """Decodes files for one backbone."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._backbone: Backbone | None = None

    def serve_with(self, backbone: Backbone) -> None:
        """The backbone is there: prompts can be checked against it."""
        self._backbone = backbone

    def decode(self, data: bytes) -> tuple[Checked, int]:
        """The prompt, and roughly the memory that it takes beside `data`. Raises InvalidPrompt or one of its kinds."""
        if self._backbone is None:
            raise NotReady("the model is still loading")
        prompt = decode_prompt(data, max_bytes=self._max_bytes)
        check_backbone(prompt.manifest, self._backbone.shape)
        check_finite_in(prompt, self._backbone.dtype_name)
        header = len(data) - sum(tensor.nbytes for tensor in prompt.tensors.values())
        return Checked(prompt, self._backbone.row_encoder(prompt.manifest)), _OBJECTS + 4 * header
