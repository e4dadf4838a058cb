"""The publish gate: it refuses exactly what does not beat its floors on dev, and says what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from prompt_store import Manifest, Member, Prompt, decode_prompt, encode_prompt
from tests.server.fakes import prompt_bytes
from trainer import NotBetterError, TrainConfig, load_examples, publish, train
from trainer.gate import Floors, judge, recorded
from trainer.scores import Scores, majority, one_hot

Settings = Callable[..., TrainConfig]
pytestmark = pytest.mark.usefixtures("no_drawing")
PROMPT = decode_prompt(prompt_bytes())
METHODS = ("prompt-tuning", "p-tuning-v2", "hard-prompt", "head-only", "made-elsewhere")


def _scores(right: int, of: int) -> Scores:
    return Scores(of, right / of, right / of, (), ())


def _manifest(method: str, training: dict[str, Any]) -> Manifest:
    return PROMPT.manifest.model_copy(update={"method": method, "training": training})


def _record(own: int, majority: int, head_only: int, of: int = 50) -> dict[str, Any]:
    floors = Floors(_scores(majority, of), _scores(head_only, of))
    return {
        "dev": recorded(_scores(own, of)), "dev_floors": floors.record(), "data": {"sizes": {"dev": of}},
    }  # fmt: skip


COUNTS = st.integers(0, 50)


@given(st.sampled_from(METHODS), COUNTS, COUNTS, COUNTS)
def test_it_refuses_exactly_what_does_not_beat_its_floors(method: str, own: int, low: int, high: int) -> None:
    judgement = judge(_manifest(method, _record(own, low, high)))
    beats = own > low and (own > high or method == "head-only")
    assert (judgement.refusal == "") == beats
    assert (judgement.advice == "") == beats
    assert judgement.note == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["accuracy", "majority", "head_only", "sizes", "dev"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["dev", "dev_floors", "data"]), JSON, max_size=3))
def test_a_record_that_anybody_wrote_raises_nothing(training: dict[str, Any]) -> None:
    judgement = judge(_manifest("p-tuning-v2", training))
    assert not (judgement.note and judgement.refusal)


@pytest.mark.parametrize(
    "training", [{}, {"page": "x"}, {"dev": {"accuracy": 0.1, "macro_f1": 0.1}}, {"dev_floors": {}}]
)
def test_a_file_without_the_figures_is_not_refused_and_says_so(
    training: dict[str, Any], tmp_path: Path
) -> None:
    data = encode_prompt(_manifest("p-tuning-v2", training), dict(PROMPT.tensors))
    assert "nothing was compared" in publish(data, str(tmp_path / "store")).note


def test_where_new_tasks_start_is_no_tasks_prompt() -> None:
    judgement = judge(_manifest("p-tuning-v2", {"start": True, **_record(50, 0, 0)}))
    assert "learned for none" in judgement.refusal
    assert "--force" in judgement.advice
    assert judge(_manifest("p-tuning-v2", {"start": "early", **_record(50, 0, 0)})).refusal == ""


def test_the_refusal_says_which_figure_against_what_and_what_to_do() -> None:
    judgement = judge(_manifest("p-tuning-v2", _record(own=40, majority=25, head_only=41)))
    assert judgement.refusal == (
        "on dev (50 examples) it has accuracy 80.0 %, which does not beat the 82.0 % of head only"
    )
    for way in ("train longer", "--method head-only", "--force"):
        assert way in judgement.advice
    both = judge(_manifest("hard-prompt", _record(own=10, majority=25, head_only=20)))
    assert "the 50.0 % of majority and the 40.0 % of head only" in both.refusal
    # A head that is itself below majority is no better thing to publish.
    assert "head-only" not in both.advice


def test_nothing_leaves_this_machine_unless_forced(tmp_path: Path) -> None:
    data = encode_prompt(_manifest("p-tuning-v2", _record(40, 25, 40)), dict(PROMPT.tensors))
    store = tmp_path / "store"
    with pytest.raises(NotBetterError, match=r"is not published: on dev .* 80\.0 %") as refused:
        publish(data, str(store))
    assert (refused.value.exit_code, "--force" in refused.value.advice) == (1, True)
    assert not store.exists()
    assert publish(data, str(store), force=True).note.startswith("forced: on dev")


@pytest.mark.parametrize("method", ["p-tuning-v2", "head-only", "hard-prompt"])
def test_training_records_the_floors_and_warns(settings: Settings, console: Console, method: str) -> None:
    """A prompt that was hardly trained on labels that say nothing: its file says what it did not beat."""
    config = settings(method=method, optimiser__epochs=1, optimiser__prompt_lr=1e-6, optimiser__head_lr=0.0)
    result = train(config, console=console)
    prompt: Prompt = decode_prompt(result.prompt.read_bytes())
    record = prompt.manifest.training
    data = load_examples(config)
    train_set, dev = (
        one_hot([one.labels for one in examples], data.labels) for examples in (data.train, data.dev)
    )
    floors: Any = record["dev_floors"]
    assert floors["majority"] == recorded(majority(train_set, dev, data.labels, multi_label=False))
    own: Any = record["dev"]
    if method == "head-only":
        assert floors["head_only"] == own
    beats = own["accuracy"] > floors["majority"]["accuracy"] and (
        method == "head-only" or own["accuracy"] > floors["head_only"]["accuracy"]
    )
    assert (judge(prompt.manifest).refusal == "") == beats
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("publishing is refused unless it is forced" in said) == (not beats)
    assert beats == (method == "head-only")


@pytest.mark.parametrize("template", ["{text} {mask}", "{text} is not this film : {mask}"])
def test_a_poor_template_does_not_lower_the_floor(
    settings: Settings, console: Console, tmp_path: Path, template: str
) -> None:
    """What a prompt must beat is the better linear head, of the text alone or of what the prompt reads."""
    plain = train(settings(method="head-only", output=str(tmp_path / "plain")), console=console)
    alone: Any = decode_prompt(plain.prompt.read_bytes()).manifest.training["dev"]
    written = settings(
        method="p-tuning-v2", optimiser__epochs=1, prompt__template=template, prompt__pooling="mask"
    )
    result = train(written, console=console)
    floors: Any = decode_prompt(result.prompt.read_bytes()).manifest.training["dev_floors"]
    said = console.file.getvalue()  # type: ignore[attr-defined]
    both = re.findall(r"head only, (with this template and pooling|of the text alone): dev ([\d.]+) %", said)
    assert [which for which, _ in both] == ["with this template and pooling", "of the text alone"]
    own, text_alone = (float(dev) for _, dev in both)
    assert text_alone == round(100 * alone["accuracy"], 1)
    assert (own < text_alone) == (template == "{text} {mask}")
    figures = json.loads((result.folder / "metrics.json").read_text())
    for kept in (floors["head_only"], figures["head_only"]["dev"]):
        assert round(100 * kept["accuracy"], 1) == max(own, text_alone)


def test_an_ensemble_of_refused_prompts_is_refused() -> None:
    def joined(*right: int) -> Manifest:
        members = tuple(Member(training={"dev": recorded(_scores(own, 50))}) for own in right)
        shared = {name: value for name, value in _record(0, 20, 30).items() if name != "dev"}
        return _manifest("p-tuning-v2", shared).model_copy(update={"members": members})

    assert "none of its 2 members passes; the first: on dev (50 examples)" in judge(joined(30, 29)).refusal
    assert "--force" in judge(joined(30, 29)).advice
    assert judge(joined(30, 31)) == judge(_manifest("p-tuning-v2", _record(31, 20, 30)))
    unknown = joined(30, 29).model_copy(update={"training": {}})
    assert "nothing was compared" in judge(unknown).note
