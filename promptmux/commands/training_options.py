"""Options that `train` and `sweep` have in common, and how they become settings."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from promptmux.commands.output import tell_durability

_Flag = typer.Option

Task = Annotated[str | None, _Flag(help="The task's id.")]
Method = Annotated[
    str | None,
    _Flag(
        help="p-tuning-v2 (the default), prefix-tuning, prompt-tuning, p-tuning, head-only or hard-prompt (nothing is "
        "trained)."
    ),
]
Train = Annotated[
    str | None,
    _Flag(
        help="Examples: a JSONL, CSV or TSV file, a folder with *.pos and *.neg, or hf:NAME[/config][:split]."
    ),
]
Dev = Annotated[str | None, _Flag(help="Examples that choose; split off the training set if absent.")]
Test = Annotated[str | None, _Flag(help="Examples that are reported; split off likewise.")]
BackboneName = Annotated[str | None, _Flag(help="minilm, a folder or a Hugging Face id.")]
Dtype = Annotated[str | None, _Flag(help="auto, float32, bfloat16 or float16.")]
Seeds = Annotated[str | None, _Flag(help="Seeds, separated by commas.")]
Set = Annotated[
    list[str] | None,
    _Flag("--set", help="Any other setting, as optimiser.prompt_lr=0.02.", metavar="KEY=VALUE"),
]
Publish = Annotated[
    str | None, _Flag(help="Publish the result: a store's folder or URL, or a server's admin address.")
]
LogWith = Annotated[
    list[str] | None,
    _Flag(help="An experiment log: tensorboard, or wandb, mlflow, … if installed; again for another one."),
]
Alias = Annotated[str, _Flag(help="The alias that then leads to it; an empty one moves none.")]


def seeds_of(text: str | None) -> list[int] | None:
    """Whole numbers separated by commas. Raises ConfigError."""
    from trainer import ConfigError

    try:
        return None if text is None else [int(seed) for seed in text.split(",")]
    except ValueError:
        raise ConfigError("--seeds: expected whole numbers separated by commas, such as 0,1,2") from None


def settings_of(given: Sequence[str]) -> dict[str, object]:
    """Parse KEY=VALUE pairs; the value is TOML, or plain text where it is no TOML. Raises ConfigError."""
    return {key: _value(text) for key, text in (_pair(pair, "--set") for pair in given)}


def grid_of(given: Sequence[str]) -> dict[str, list[object]]:
    """Parse KEY=VALUE,VALUE… pairs, or KEY=[VALUE, …] in TOML. Raises ConfigError."""
    grid: dict[str, list[object]] = {}
    for key, text in (_pair(pair, "--grid") for pair in given):
        whole = _value(text)
        values = whole if isinstance(whole, list) else [_value(part.strip()) for part in text.split(",")]
        grid[key] = grid.get(key, []) + values
    return grid


def refuse_settings(given: Mapping[str, object]) -> None:
    """With --resume, what was given by name and is not None is in vain. Raises ConfigError for it."""
    from trainer import ConfigError

    if names := [name for name, value in given.items() if value is not None]:
        raise ConfigError(
            f"--resume goes on with the settings that its folder was started with: leave out {', '.join(names)}, or "
            "start a new run without --resume"
        )


@dataclass(frozen=True)
class Publishing:
    """Where what is learned goes, if anywhere, and how."""

    target: str | None
    alias: str
    key: str | None
    force: bool

    def __post_init__(self) -> None:
        """Raises ConfigError for a bad alias or target: better now than when the training is over."""
        from prompt_store import InvalidAlias, check_alias
        from trainer import ConfigError
        from trainer.publish import check_target

        if self.target is not None:
            try:
                check_target(self.target)
            except ConfigError as error:
                raise ConfigError(f"--publish: {error}") from None
        if self.target is not None and self.alias:
            try:
                check_alias(self.alias)
            except InvalidAlias as error:
                raise ConfigError(f"--alias {self.alias!r}: {error}") from None

    @contextmanager
    def later(self) -> Iterator[None]:
        """The command that an interrupted training ends with shall publish as this one would have; its key is not
        shown.
        """
        from prompt_store.redis_url import without_secrets
        from trainer import TrainingInterruptedError

        try:
            yield
        except TrainingInterruptedError as error:
            if self.target is not None:
                rest = ["--publish", without_secrets(self.target), "--alias", self.alias]
                rest += ["--force"] if self.force else []
                error.args = (f"{error} {shlex.join(rest)}",)
            raise

    def publish(self, prompt: Path) -> str:
        """Publish a prompt file, and say so; without a target say how it is published."""
        import trainer
        from prompt_store.redis_url import without_secrets
        from trainer.errors import NotPublishedError
        from trainer.gate import judge_file

        if self.target is None:
            how, insist = (" all the same", " --force") if judge_file(prompt).refusal else ("", "")
            return f"publish it{how}: promptmux publish {shlex.quote(str(prompt))}{insist}"
        try:
            done = trainer.publish(
                prompt, self.target, alias=self.alias or None, key=self.key, force=self.force
            )
        except NotPublishedError as error:  # the training was not in vain
            where = "--server" if self.target.startswith(("http://", "https://")) else "--store"
            later = ["promptmux", "publish", str(prompt), where, without_secrets(self.target)]
            later += ["--alias", self.alias] if self.alias != "current" else []
            later += ["--force"] if self.force else []
            error.advice = f"{error.advice}; then: {shlex.join(later)}".removeprefix("; then: ")
            raise
        note = f" ({done.note})" if done.note else ""
        tell_durability(done.durable)
        news = "published" if done.created else "already there:"
        leads = f" as {done.alias}" if done.alias else ""
        return f"{news} {done.task_id} {done.version[:12]}{leads} to {done.target}{note}"


def _pair(pair: str, flag: str) -> tuple[str, str]:
    from trainer import ConfigError

    key, equals, value = pair.partition("=")
    if not equals:
        raise ConfigError(f"{flag} {pair}: expected KEY=VALUE, such as optimiser.epochs=3")
    return key.strip(), value


def _value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def not_published(prompt: Path, error: Exception) -> str:
    """What to say of one prompt of several that was not published, while the others are."""
    advice = getattr(error, "advice", "")
    return f"{prompt}: {error}" + (f". What to do: {advice}" if advice else "")
