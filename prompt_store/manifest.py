"""The manifest: everything a prompt file says besides its tensors.

Owns: the fields, their ranges, and the checks among them that need neither tensors nor a backbone.
Must not know: bytes, stores, tokenizers.
"""

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from prompt_store.errors import IncompatiblePrompt, InvalidPrompt
from prompt_store.names import NAME_PATTERN
from prompt_store.strict_json import strict_json
from prompt_store.template import Template, parse_template

FORMAT: Final = 1
_THRESHOLD: Final = 0.5
RESERVED_KINDS: Final = ("tag", "generate")

_Dim = Annotated[int, Field(ge=1, le=10_000_000)]
_Label = Annotated[str, Field(min_length=1, max_length=200)]
_Bounded = Annotated[float, Field(ge=-1e6, le=1e6)]  # stays finite in the serving dtype's arithmetic
_Text = Annotated[str, Field(min_length=1, max_length=4096)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class BackboneRef(_Strict):
    """The backbone a prompt was made for. `name` is for people; the fingerprint and the shapes decide."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    fingerprint: Annotated[str, Field(pattern=r"^[A-Za-z0-9:._-]{1,128}\z")]
    embedding_width: _Dim
    hidden_size: _Dim
    layers: _Dim
    kv_heads: _Dim
    head_dim: _Dim


class MaxLength(_Strict):
    """How much is read, and which side is cut.

    "row" counts every token that takes a place in the row: special and soft tokens too, prefix keys not.
    "text" counts the tokens of text and text_pair only.
    """

    tokens: _Dim
    counts: Literal["row", "text"] = "row"
    cut: Literal["right", "left"] = "right"


class LinearLayer(_Strict):
    """y = activation(x @ weight.T + bias); weight [out_features, in_features], bias [out_features]."""

    in_features: _Dim
    out_features: _Dim
    bias: bool = True
    activation: Literal["tanh", "relu", "gelu"] | None = None


class LinearHead(_Strict):
    """Layers from the pooled hidden state to one logit per label; tensors `head.{i}.{weight,bias}`."""

    type: Literal["linear"] = "linear"
    layers: Annotated[tuple[LinearLayer, ...], Field(min_length=1, max_length=16)]


class VerbalizerHead(_Strict):
    """Label words read from the language-model head at the masks; one tuple of words per label."""

    type: Literal["verbalizer"] = "verbalizer"
    words: tuple[Annotated[tuple[_Label, ...], Field(min_length=1)], ...]
    aggregate: Literal["mean", "max"] = "mean"


class LabelEmbeddingHead(_Strict):
    """Scaled cosine to one vector per label; tensor `verbalizer.label_embeddings` [labels, hidden_size]."""

    type: Literal["label_embeddings"] = "label_embeddings"
    descriptions: tuple[_Text, ...]
    scale: Annotated[float, Field(gt=0, le=1e6)]


Head = Annotated[LinearHead | VerbalizerHead | LabelEmbeddingHead, Field(discriminator="type")]


class Calibration(_Strict):
    """scores = (logits + bias) / temperature; one bias per label, or none."""

    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    bias: tuple[_Bounded, ...] | None = None


class Golden(_Strict):
    """An example and the label that must come out."""

    text: str
    text_pair: str | None = None
    label: str


class Manifest(_Strict):
    """A prompt's description.

    Building one by hand raises pydantic's ValidationError, InvalidTemplate, or IncompatiblePrompt for a
    format or kind not known here; `parse_manifest` raises InvalidPrompt and its subclasses only.
    """

    format: Literal[1] = FORMAT
    task_id: Annotated[str, Field(pattern=rf"^{NAME_PATTERN}\z")]
    kind: Literal["classify"] = "classify"
    labels: Annotated[tuple[_Label, ...], Field(min_length=1, max_length=10_000)]
    multi_label: bool = False
    thresholds: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None  # None: 0.5 each
    method: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,40}\z")]
    backbone: BackboneRef
    template: Annotated[str, Field(max_length=4096)]
    pooling: (
        Literal["cls", "mean", "mask", "last", "pooler"] | Annotated[int, Field(ge=-1_000_000, le=1_000_000)]
    )
    position_offset: Annotated[int, Field(ge=0, le=1_000_000)]
    max_length: MaxLength
    head: Head
    calibration: Calibration | None = None
    golden: Annotated[tuple[Golden, ...], Field(max_length=1000)] = ()
    training: dict[str, JsonValue] = {}

    @field_validator("format", mode="before")
    @classmethod
    def _known_format(cls, value: Any) -> Any:
        if type(value) is not int:  # True and 1.0 equal 1, and would pass as the literal
            raise ValueError("expected a whole number")
        if value > FORMAT:
            raise IncompatiblePrompt(f"format: expected {FORMAT}, got a newer one: upgrade promptmux")
        return value

    @field_validator("kind", mode="before")
    @classmethod
    def _known_kind(cls, value: Any) -> Any:
        if value in RESERVED_KINDS:
            raise IncompatiblePrompt(f'kind "{value}" is reserved and not served yet: expected "classify"')
        return value

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        template = parse_template(self.template)
        self._check_labels()
        self._check_head(template)
        if self.pooling == "mask" and not template.has_mask:
            raise ValueError('pooling "mask": expected a {mask} in the template, got none')
        try:
            self.canonical_json()
        except ValueError:
            raise ValueError("training: expected JSON, got NaN, infinity or a lone surrogate") from None
        return self

    def _check_labels(self) -> None:
        count = len(self.labels)
        if len(set(self.labels)) != count:
            raise ValueError("labels: expected each once, got one twice")
        if count < 2 and not self.multi_label:
            raise ValueError("labels: expected at least 2, got 1")
        if self.thresholds is not None:
            if not self.multi_label:
                raise ValueError("thresholds: expected none, as multi_label is false")
            _expect("thresholds", count, len(self.thresholds))
        if self.calibration is not None and self.calibration.bias is not None:
            _expect("calibration.bias", count, len(self.calibration.bias))
        known = set(self.labels)
        for i, golden in enumerate(self.golden):
            if golden.label not in known:
                raise ValueError(f"golden[{i}].label: expected one of the labels")

    def _check_head(self, template: Template) -> None:
        head, count = self.head, len(self.labels)
        if isinstance(head, VerbalizerHead):
            _expect("head.words", count, len(head.words))
            if not template.has_mask:
                raise ValueError(
                    "head: a verbalizer reads at {mask}: expected at least 1 in the template, got 0"
                )
        elif isinstance(head, LabelEmbeddingHead):
            _expect("head.descriptions", count, len(head.descriptions))
        else:
            width = self.backbone.hidden_size
            for i, layer in enumerate(head.layers):
                _expect(f"head.layers[{i}].in_features", width, layer.in_features)
                width = layer.out_features
            _expect("the last head layer's out_features", count, width)

    def chosen_labels(self, scores: Sequence[float]) -> list[str]:
        """The label of a row's scores, or for a multi-label prompt every label at its threshold or above."""
        if not self.multi_label:
            return [self.labels[max(range(len(scores)), key=scores.__getitem__)]]
        thresholds = self.thresholds or (_THRESHOLD,) * len(scores)
        return [
            label
            for label, score, least in zip(self.labels, scores, thresholds, strict=True)
            if score >= least
        ]

    def canonical_json(self) -> bytes:
        """The one spelling of this manifest: sorted keys, no spaces, UTF-8."""
        fields = self.model_dump(mode="json")
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()


def _expect(what: str, expected: int, got: int) -> None:
    if got != expected:
        raise ValueError(f"{what}: expected {expected}, got {got}")


def parse_manifest(text: str) -> Manifest:
    """Read a manifest's JSON; InvalidPrompt, InvalidTemplate or IncompatiblePrompt says what is wrong."""
    try:
        strict_json(
            text
        )  # for repeated keys; pydantic reads the text again, as only then JSON lists are tuples
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise InvalidPrompt(f"manifest: {_describe(error)}") from None
    except ValueError as error:
        raise InvalidPrompt(f"manifest: {error}") from None


def _describe(error: ValidationError) -> str:
    """The first few findings, without the input that caused them."""
    findings = error.errors(include_url=False, include_input=False, include_context=True)
    lines = [f"{_where(finding['loc'])}: {_what(finding)}" for finding in findings[:3]]
    if len(findings) > 3:
        lines.append(f"and {len(findings) - 3} more")
    return "; ".join(lines).removeprefix(": ")


def _where(location: tuple[int | str, ...]) -> str:
    # A key may be anything a stranger wrote; only names that could be ours are shown.
    return ".".join(str(key) for key in location if isinstance(key, int) or re.fullmatch("[a-z_]{1,32}", key))


def _what(finding: Any) -> str:
    if finding["type"] == "union_tag_invalid":  # pydantic's own message quotes the tag
        return f"expected one of {finding['ctx']['expected_tags']}"
    if finding["type"] == "extra_forbidden":
        return "not a known key"
    return str(finding["msg"]).removeprefix("Value error, ")
