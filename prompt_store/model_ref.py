"""What a prompt says of the model that it was made for: its shapes, and how much of a text it reads and where.

Owns: these parts of the manifest. Must not know: templates, heads, tensors.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Dim = Annotated[int, Field(ge=1, le=10_000_000)]


class Strict(BaseModel):
    """A part of the manifest: immutable, nothing unknown in it, nothing converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class StackRef(Strict):
    """The decoder of an encoder-decoder: what its own attention and its cross attention have."""

    layers: Dim
    kv_heads: Dim
    head_dim: Dim


class BackboneRef(Strict):
    """The backbone a prompt was made for. `name` is for people; the fingerprint and the shapes decide.

    Of an encoder-decoder, `layers`, `kv_heads` and `head_dim` are the encoder's, and `decoder` has its own.
    """

    name: Annotated[str, Field(min_length=1, max_length=200)]
    fingerprint: Annotated[str, Field(pattern=r"^[A-Za-z0-9:._-]{1,128}\z")]
    embedding_width: Dim
    hidden_size: Dim
    layers: Dim
    kv_heads: Dim
    head_dim: Dim
    decoder: StackRef | None = None

    def stack(self, name: str) -> "BackboneRef | StackRef":
        """What has the shapes of a prefix for the stack "encoder", "decoder" or "cross"."""
        return self if name == "encoder" or self.decoder is None else self.decoder


class DecoderInput(Strict):
    """What an encoder-decoder's decoder reads beside the encoded row; the head then reads the decoder's states.

    "start": its start token alone, and the state there is pooled. "mask": its start token and the mask token, and the
    state at the latter is pooled. "copy": the row's tokens shifted right by one, virtual ones left out; the state that
    would predict a token is pooled in the place of that token's own.

    `position_offset` shifts the decoder's positions. At 0 a prefix of the decoder has no position; else its keys stand
    right before the first token, as PEFT counts (its offset is the prefix's length).
    """

    reads: Literal["start", "mask", "copy"]
    position_offset: Annotated[int, Field(ge=0, le=1_000_000)] = 0


class MaxLength(Strict):
    """How much is read, and which side is cut.

    "row" counts every token that takes a place in the row: special and soft tokens too, prefix keys not.
    "text" counts the tokens of text and text_pair only.
    """

    tokens: Dim
    counts: Literal["row", "text"] = "row"
    cut: Literal["right", "left"] = "right"
