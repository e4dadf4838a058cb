"""Owns the settings of a training run: everything that is needed to repeat it. Knows no torch and reads no examples.

A run is described by one TOML file, by flags, or by both (flags win); the two go through the same model,
which refuses unknown keys. `None` means "the method's own default" and is filled by `trainer.methods.resolve`
before anything runs, so that a saved config.toml and a prompt file's training record name real values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from prompt_store import MAX_MEMBERS, InvalidTaskId, check_task_id
from trainer.errors import ConfigError

MethodName = Literal["prompt-tuning", "p-tuning", "prefix-tuning", "p-tuning-v2", "head-only", "hard-prompt"]
Reparameterisation = Literal["none", "residual", "mlp", "lstm"]
Initialisation = Literal["text", "labels", "vocabulary", "random"]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
# AdamW's first step is ten times its rate, and one that float32 cannot hold ends all that is trained beside it.
MAX_RATE = 1e30


def _rate(value: float) -> float:
    if value > MAX_RATE:  # not `le`, whose message counts the zeros
        raise ValueError(f"expected at most {MAX_RATE:g}")
    return value


class Section(BaseModel):
    """Base of every section: immutable, and an unknown key is an error rather than a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(Section):
    """Where the examples are and how their columns are called.

    `train`, `dev` and `test` are each a JSONL, CSV or TSV file, a folder (with `*.pos` and `*.neg`, or with
    `train.*`/`dev.*`/`test.*`), or `hf:NAME[/config][:split]`. A missing dev or test set is split off the
    training set, stratified by label.
    """

    train: str
    dev: str | None = None
    test: str | None = None
    format: Literal["auto", "jsonl", "csv", "tsv", "pos-neg", "splits"] = "auto"
    text_column: str = "text"
    text_pair_column: str = "text_pair"
    label_column: str = "label"
    labels_column: str = "labels"
    label_separator: Annotated[str, Field(min_length=1)] = "|"
    encoding: str | None = None
    dev_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    test_fraction: Fraction = 0.15
    split_seed: int = 0


class PromptConfig(Section):
    """Template, soft prompt or prefix, and how they start.

    `reparameterisation` is the network that makes the prompt while it is trained (none of it is served), and
    `encoder_hidden_size` that network's inner width. `init_from` starts from another task's prompt (SPoT): a prompt
    file, a run folder, or TASK@STORE; `init_version` is the version that was found there, and must be found again.
    `decoder` is what an encoder-decoder's decoder reads.
    """

    template: str | None = None
    num_virtual_tokens: Annotated[int, Field(ge=1, le=1024)] | None = None
    init: tuple[Initialisation, ...] | None = None
    task_text: str = ""
    init_from: str | None = None
    init_version: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    reparameterisation: Reparameterisation | None = None
    encoder_hidden_size: Annotated[int, Field(ge=1, le=65536)] | None = None
    pooling: Literal["cls", "mean", "mask", "last", "pooler"] | int | None = None
    decoder: Literal["start", "mask", "copy"] | None = None
    max_tokens: Annotated[int, Field(ge=1)] = 256
    max_length_counts: Literal["row", "text"] = "text"
    cut: Literal["right", "left"] = "right"

    @field_validator("init")
    @classmethod
    def _reached(cls, init: tuple[Initialisation, ...] | None) -> tuple[Initialisation, ...] | None:
        for source in (init or ())[:-1]:
            if source in ("vocabulary", "random"):
                raise ValueError(f"{source!r} fills all that is left, so nothing can come after it")
        return init


class HeadConfig(Section):
    """What turns the pooled state into label scores.

    `start` is what a trained head begins as: the linear probe on frozen features, small random weights, or the head of
    the prompt that `prompt.init_from` names ("source", for the same labels).
    """

    type: Literal["linear", "verbalizer", "label_embeddings"] | None = None
    start: Literal["probe", "random", "source"] = "probe"
    words: dict[str, tuple[str, ...]] | None = None
    aggregate: Literal["mean", "max"] = "mean"
    descriptions: dict[str, str] | None = None
    scale: Annotated[float, Field(gt=0.0, le=1e6)] = 20.0


class OptimiserConfig(Section):
    """AdamW (arXiv 1711.05101) with one learning rate per group, linear warm-up and linear decay to zero.

    `averaging` is the decay of the exponential average of the weights that is scored and published; `word_dropout`
    the share of words left out of each training text, drawn anew every epoch (Iyyer et al. 2015, section 3.2);
    `evaluations` are spread over the run, and `patience` counts them.
    """

    epochs: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    prompt_lr: Annotated[float, Field(gt=0.0), AfterValidator(_rate)] | None = None
    head_lr: Annotated[float, Field(ge=0.0), AfterValidator(_rate)] | None = None
    weight_decay: Annotated[float, Field(ge=0.0), AfterValidator(_rate)] = 0.0
    warmup: Fraction = 0.06
    clip_norm: Annotated[float, Field(gt=0.0)] = 1.0
    averaging: Fraction | None = None
    word_dropout: Fraction | None = None
    evaluations: Annotated[int, Field(ge=1)] = 8
    patience: Annotated[int, Field(ge=1)] = 6


class GoldenConfig(Section):
    """One example that the published prompt must answer with `label`."""

    text: str
    text_pair: str | None = None
    label: str


class TrainConfig(Section):
    """One training run. `output` is the run folder, `log_with` names experiment logs, `rows_at_once` says how many rows
    one step may have, all prompts together, for the device's memory; everything else decides what is learned.

    With `ensemble` the prompt to publish holds all seeds' prompts (Lester et al. 2021, section 6), not the best one.
    """

    task_id: str
    method: MethodName = "p-tuning-v2"
    output: str
    backbone: str = "minilm"
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    labels: tuple[str, ...] | None = None
    multi_label: bool = False
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1)] = (0, 1, 2)
    ensemble: bool = False
    calibrate: bool = False
    golden: tuple[GoldenConfig, ...] | Literal["train"] = ()
    log_with: tuple[str, ...] = ()
    rows_at_once: Annotated[int, Field(ge=1)] | None = None
    data: DataConfig
    prompt: PromptConfig = PromptConfig()
    head: HeadConfig = HeadConfig()
    optimiser: OptimiserConfig = OptimiserConfig()

    @field_validator("task_id")
    @classmethod
    def _named(cls, task_id: str) -> str:
        """The prompt file would refuse it as well, but only after folders were named after it."""
        try:
            return check_task_id(task_id)
        except InvalidTaskId as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _together(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: the same seed twice would count one run as two")
        if self.ensemble and not 2 <= len(self.seeds) <= MAX_MEMBERS:
            raise ValueError(f"ensemble: takes 2 to {MAX_MEMBERS} seeds, got {len(self.seeds)}")
        if self.ensemble and self.method in ("head-only", "hard-prompt"):
            raise ValueError(f'ensemble: method = "{self.method}" has no seeds to join')
        if isinstance(self.golden, tuple) and len(self.golden) > MAX_GOLDEN:
            raise ValueError(f"golden: at most {MAX_GOLDEN} examples")
        if self.head.type == "verbalizer" and self.head.words is None:
            raise ValueError('head.type = "verbalizer" needs head.words: the words of each label')
        if self.method == "head-only" and self.head.type not in (None, "linear"):
            raise ValueError('method = "head-only" trains a linear head: leave head.type out')
        if self.method == "hard-prompt" and self.head.type == "linear":
            raise ValueError('method = "hard-prompt" trains nothing, so head.type cannot be "linear"')
        return self

    @property
    def unused(self) -> tuple[str, ...]:
        """Settings that somebody chose and nothing here looks at.

        They are no error: a file of many tasks may have them as defaults, and a sweep for another setting.
        """
        found: list[str] = []
        if self.head.words is not None and (
            self.method == "head-only" or self.head.type not in (None, "verbalizer")
        ):
            found.append("head.words")
        if self.method in ("head-only", "hard-prompt"):  # no prompt is trained, and nothing by steps
            of = {"prompt": ("num_virtual_tokens", "init", "task_text"), "head": ("start",)}
            for section, names in (of | {"optimiser": tuple(OptimiserConfig.model_fields)}).items():
                found += self.chosen(section, names)
        return tuple(found)

    def chosen(self, section: str, names: Iterable[str]) -> list[str]:
        """Those of a section's settings that somebody chose, by their whole names; "" is the top."""
        own = getattr(self, section) if section else self
        defaults = {name: field.default for name, field in type(own).model_fields.items()}
        return [
            f"{section}.{name}".removeprefix(".") for name in names if getattr(own, name) != defaults[name]
        ]


MAX_GOLDEN = 4


def config_of(
    values: dict[str, Any], overrides: Mapping[str, object] | None = None, path: Path | None = None
) -> TrainConfig:
    """A configuration from a file's values with `overrides` laid over them, as `load_config`."""
    for dotted, value in (overrides or {}).items():
        if value is None:
            continue
        *sections, key = dotted.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ConfigError(f"{section}: expected a table")
        target[key] = value
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_first_line(error, path)) from None


# Settings without which there is no training, as the command line has them.
_FLAGS = {
    "task_id": " (--task)",
    "data": ": data.train (--train)",
    "data.train": " (--train)",
    "output": " (--output)",
}


def _first_line(error: ValidationError, path: Path | None) -> str:
    found = error.errors(include_url=False, include_input=False)
    # A setting that is misspelt may leave its place empty as well: the word that is wrong is the one to name.
    first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
    # Parts that pydantic calls by a type, as those of a union, are no keys.
    key = ".".join(str(part) for part in first["loc"] if "[" not in str(part))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"unknown setting{_meant(first['loc'])}"
    elif first["type"] == "missing":
        message = "this setting is required" + (_FLAGS.get(key, "") if path is None else "")
    elif first["type"] == "tuple_type":
        message = "expected a list, such as [0, 1]" if key == "seeds" else "expected a list"
    where = f"{path}: " if path is not None else ""
    return where + (f"{key}: {message}" if key else message)


def _meant(place: Sequence[str | int]) -> str:
    """What an unknown setting may have been meant as; empty, if nothing is like it."""
    *sections, key = map(str, place)
    known: type[Section] = TrainConfig
    for section in sections:
        field = known.model_fields.get(section)
        if field is None or not (
            isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        ):
            return ""
        known = field.annotation
    near: list[str] = []
    if not sections:  # a setting without its section
        tables: dict[str, type[Section]] = {
            "data": DataConfig, "prompt": PromptConfig, "head": HeadConfig, "optimiser": OptimiserConfig,
        }  # fmt: skip
        near = [f"{name}.{key}" for name, table in tables.items() if key in table.model_fields]
    near = near or get_close_matches(key, known.model_fields, n=1, cutoff=0.7)
    return f"; did you mean {'.'.join((*sections, near[0]))}?" if near else ""
