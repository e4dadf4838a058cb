"""Owns the publish gate: a prompt that does not beat what costs nothing is not published unless somebody insists.

What costs nothing is always answering the commonest label (majority) and a linear head on frozen features (head only).
A prompt file carries the dev figures of all three in its training record, so that whoever publishes it later, and
elsewhere, is told the same. Knows manifests and scores; knows no torch, no model and no store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from prompt_store import Manifest, decode_prompt
from trainer.data import TaskData
from trainer.scores import Scores, majority, one_hot

RECORD = "dev_floors"
START = "start"  # of what tasks learned jointly: where a new task starts, learned for none
_NAMES = {"majority": "majority", "head_only": "head only"}


@dataclass(frozen=True)
class Floors:
    """Scores on dev of what a prompt must beat there."""

    majority: Scores
    head_only: Scores

    @classmethod
    def of(cls, data: TaskData, head_only: Scores) -> Floors:
        """The floors of a task, of which `head_only` was measured already."""
        train, dev = (
            one_hot([example.labels for example in examples], data.labels)
            for examples in (data.train, data.dev)
        )
        return cls(majority(train, dev, data.labels, multi_label=data.multi_label), head_only)

    def record(self) -> dict[str, JsonValue]:
        """As they stand in a manifest's training record."""
        return {"majority": recorded(self.majority), "head_only": recorded(self.head_only)}


def recorded(scores: Scores) -> dict[str, JsonValue]:
    """Scores as they stand in a manifest's training record."""
    return {"accuracy": round(scores.accuracy, 6), "macro_f1": round(scores.macro_f1, 6)}


@dataclass(frozen=True)
class Judgement:
    """What the gate says of a prompt: `refusal` is why it is refused, `advice` what to do then, and `note` why nothing
    could be checked; each empty where there is nothing of the kind.
    """

    refusal: str = ""
    advice: str = ""
    note: str = ""


def judge(manifest: Manifest) -> Judgement:
    """Whether a prompt beats its floors: its accuracy on dev must be greater, equal is not enough.

    An ensemble that was never scored as one is refused when none of its members would pass.

    A file without these figures (made elsewhere, or before they were kept) is not refused. `head-only` cannot beat
    itself and is compared with majority alone.
    """
    if manifest.training.get(START) is True:
        return Judgement(
            refusal="it is where new tasks start, learned for none, and its head has never seen it",
            advice="train a task from it with prompt.init_from; or publish it all the same, with --force",
        )
    if manifest.members and "dev" not in manifest.training:
        return _judge_members(manifest)
    method, record = manifest.method, manifest.training
    own, floors = _accuracy(record.get("dev")), record.get(RECORD)
    wanted = ("majority",) if method == "head-only" else ("majority", "head_only")
    known = {name: _accuracy(floors.get(name)) if isinstance(floors, dict) else None for name in wanted}
    if own is None or None in known.values():
        return Judgement(note="its file has no dev figures of majority and head only: nothing was compared")
    unbeaten = {_NAMES[name]: value for name, value in known.items() if value is not None and own <= value}
    if not unbeaten:
        return Judgement()
    against = " and ".join(f"the {_percent(value)} of {name}" for name, value in unbeaten.items())
    right = "all labels right in" if manifest.multi_label else "accuracy"
    refusal = f"on dev{_examples(record)} it has {right} {_percent(own)}, which does not beat {against}"
    return Judgement(refusal=refusal, advice=_advice(method, known))


def _judge_members(manifest: Manifest) -> Judgement:
    judged = [
        judge(
            manifest.model_copy(update={"members": (), "training": {**manifest.training, **member.training}})
        )
        for member in manifest.members
    ]
    passed = [one for one in judged if not one.refusal]
    if passed:  # one that passes outright speaks for the others, else one that could not be compared
        return min(passed, key=lambda one: one.note)
    return Judgement(
        refusal=f"none of its {len(judged)} members passes; the first: {judged[0].refusal}",
        advice=judged[0].advice,
    )


def judge_file(path: Path) -> Judgement:
    """`judge` of a prompt file that is known to be whole."""
    return judge(decode_prompt(path.read_bytes()).manifest)


def _advice(method: str, floors: Mapping[str, float | None]) -> str:
    ways = []
    if method == "hard-prompt":
        ways.append("describe the labels better, or train a prompt")
    elif method == "head-only":
        ways.append("give more examples, or more even ones")
    else:
        ways.append("train longer or on more examples")
    if method != "head-only" and (floors["head_only"] or 0.0) > (floors["majority"] or 0.0):
        ways.append("publish the head-only prompt, which is smaller (train with --method head-only)")
    ways.append("publish this one all the same, with --force")
    return "; or ".join(ways)


def _accuracy(scores: JsonValue) -> float | None:
    """The accuracy in a record, which anybody may have written."""
    value = scores.get("accuracy") if isinstance(scores, dict) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _examples(record: Mapping[str, JsonValue]) -> str:
    data = record.get("data")
    sizes = data.get("sizes") if isinstance(data, dict) else None
    count = sizes.get("dev") if isinstance(sizes, dict) else None
    return f" ({count} examples)" if isinstance(count, int) else ""


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
