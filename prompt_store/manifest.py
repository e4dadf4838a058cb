"""The manifest: everything a prompt file says besides its tensors.

Owns: the fields, their ranges, and the checks among them that need neither tensors nor a backbone.
Must not know: bytes, stores, tokenizers.
"""

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from prompt_store.errors import IncompatiblePrompt, InvalidPrompt
from prompt_store.model_ref import BackboneRef, DecoderInput, Dim, MaxLength, Strict
from prompt_store.names import NAME_PATTERN
from prompt_store.strict_json import strict_json
from prompt_store.template import Template, parse_template

FORMAT: Final = 1
MAX_MEMBERS: Final = 16  # each of them reads every text: a request costs this many
_THRESHOLD: Final = 0.5
RESERVED_KINDS: Final = ("tag", "generate")

_Label = Annotated[str, Field(min_length=1, max_length=200)]
_Bounded = Annotated[float, Field(ge=-1e6, le=1e6)]  # stays finite in the serving dtype's arithmetic
_Text = Annotated[str, Field(min_length=1, max_length=4096)]


class LinearLayer(Strict):
    """y = norm(activation(x @ weight.T + bias)); weight [out_features, in_features], bias [out_features].

    With `norm_eps` there is a layer norm behind the activation: norm.weight and norm.bias [out_features].
    """

    in_features: Dim
    out_features: Dim
    bias: bool = True
    activation: Literal["tanh", "relu", "gelu"] | None = None
    norm_eps: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Prompts from before there was a norm keep their bytes, and servers from then read those without one.
        fields: dict[str, Any] = handler(self)
        if self.norm_eps is None:
            fields.pop("norm_eps", None)
        return fields


class LinearHead(Strict):
    """Layers from the pooled hidden state to one logit per label; tensors `head.{i}.{weight,bias}`."""

    type: Literal["linear"] = "linear"
    layers: Annotated[tuple[LinearLayer, ...], Field(min_length=1, max_length=16)]


class VerbalizerHead(Strict):
    """Label words read from the language-model head at the masks; one tuple of words per label."""

    type: Literal["verbalizer"] = "verbalizer"
    words: tuple[Annotated[tuple[_Label, ...], Field(min_length=1)], ...]
    aggregate: Literal["mean", "max"] = "mean"


class LabelEmbeddingHead(Strict):
    """Scaled cosine to one vector per label; tensor `verbalizer.label_embeddings` [labels, hidden_size]."""

    type: Literal["label_embeddings"] = "label_embeddings"
    descriptions: tuple[_Text, ...]
    scale: Annotated[float, Field(gt=0, le=1e6)]


Head = Annotated[LinearHead | VerbalizerHead | LabelEmbeddingHead, Field(discriminator="type")]


class Calibration(Strict):
    """scores = (logits + bias) / temperature; one bias per label, or none."""

    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    bias: tuple[_Bounded, ...] | None = None


class Member(Strict):
    """What one prompt of an ensemble has of its own beside its tensors `member.{k}.*`.

    `version` is that of the file with this prompt alone, and `training` how it was made: they decide nothing.
    """

    calibration: Calibration | None = None
    version: Annotated[str, Field(pattern=r"^[0-9a-f]{64}\z")] | None = None
    training: dict[str, JsonValue] = {}  # noqa: RUF012  # pydantic copies it


class Golden(Strict):
    """An example and the label that must come out."""

    text: str
    text_pair: str | None = None
    label: str


class Manifest(Strict):
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
        Literal["cls", "mean", "row", "mask", "last", "pooler"]
        | Annotated[int, Field(ge=-1_000_000, le=1_000_000)]
    )
    position_offset: Annotated[int, Field(ge=0, le=1_000_000)]
    decoder: DecoderInput | None = None  # of an encoder-decoder; None: its encoder alone is run
    max_length: MaxLength
    head: Head
    calibration: Calibration | None = None
    golden: Annotated[tuple[Golden, ...], Field(max_length=1000)] = ()
    training: dict[str, JsonValue] = {}  # noqa: RUF012  # pydantic copies it
    # Empty for every prompt but an ensemble, whose answer is the mean of its members' probabilities.
    members: Annotated[tuple[Member, ...], Field(max_length=MAX_MEMBERS)] = ()

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
        self._check_members()
        if self.pooling == "mask" and not template.has_mask:
            raise ValueError('pooling "mask": expected a {mask} in the template, got none')
        self._check_decoder(template)
        try:
            self.canonical_json()
        except ValueError:
            raise ValueError("training: expected JSON, got NaN, infinity or a lone surrogate") from None
        return self

    def _check_decoder(self, template: Template) -> None:
        if self.decoder is None:
            return
        reads = self.decoder.reads
        if reads != "copy" and self.pooling not in ("mask", "last"):
            raise ValueError(f'decoder.reads "{reads}": expected pooling "mask" or "last", got another')
        if self.pooling == "pooler":
            raise ValueError('decoder: expected a pooling of its states, got "pooler"')
        if reads == "mask" and template.num_masks != 1:
            raise ValueError(
                f'decoder.reads "mask": expected one {{mask}} in the template, got {template.num_masks}'
            )

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
        _check_bias("calibration.bias", self.calibration, count)
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

    def _check_members(self) -> None:
        if len(self.members) == 1:
            raise ValueError("members: expected none or at least 2, got 1")
        if self.members and self.calibration is not None:
            raise ValueError("calibration: expected in the members, each its own, got one for all")
        for i, member in enumerate(self.members):
            _check_bias(f"members[{i}].calibration.bias", member.calibration, len(self.labels))

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
        """The one spelling of this manifest: sorted keys, no spaces, UTF-8.

        `members`, `decoder` and `backbone.decoder` came later: left out where there are none, so that older files keep
        their digests.
        """
        fields = self.model_dump(mode="json", exclude=None if self.members else {"members"})
        for part in (fields, fields["backbone"]):
            if part["decoder"] is None:
                del part["decoder"]
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()


def _check_bias(what: str, calibration: Calibration | None, labels: int) -> None:
    if calibration is not None and calibration.bias is not None:
        _expect(what, labels, len(calibration.bias))


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
