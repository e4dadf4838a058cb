"""A running server answers with what was trained: published while it runs, as the trainer's own evaluation says.

Every method and kind of head, on an encoder, a decoder and an encoder-decoder; published to the server's store, or by
its admin API.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from backbone import Backbone
from prompt_store import decode_prompt
from tests.backbone import families, seq2seq
from tests.integration.conftest import PATIENCE, Serve, ServerProcess
from tests.trainer.conftest import separable, write_jsonl
from trainer import TrainConfig, load_config, load_examples, load_many, publish, train, train_many

WORDS = {"negative": ["bad"], "positive": ["good"]}
SPLITS = (("train", 32), ("dev", 12), ("test", 12))


@dataclass(frozen=True)
class Case:
    """One prompt: of which family and method, with which settings, learned from which of the sets."""

    family: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: str = "plain"

    @property
    def name(self) -> str:
        """Of the test, and of the task."""
        kind = "verbalizer" if "head.words" in self.settings else self.settings.get("head.type", "")
        return "-".join(filter(None, (self.family, self.method, str(kind).replace("_", "-"), self.data)))


NETWORK = {"prompt.encoder_hidden_size": 6}
CASES = (
    Case("bert", "p-tuning-v2", {"calibrate": True, "multi_label": True}, "several"),
    Case("bert", "p-tuning", {"calibrate": True, **NETWORK}, "pairs"),
    Case("bert", "prompt-tuning", {"head.type": "label_embeddings"}),
    Case("bert", "prefix-tuning", {"seeds": [0, 1], "ensemble": True, **NETWORK}),
    Case("llama", "p-tuning", {"head.words": WORDS, **NETWORK}),
    Case("llama", "prefix-tuning", NETWORK),
    Case("llama", "prompt-tuning", {"prompt.reparameterisation": "residual"}),
    Case("llama", "hard-prompt", {"calibrate": True}),
    Case(
        "t5",
        "p-tuning-v2",
        {"prompt.decoder": "start", "head.words": WORDS, "prompt.template": "{text} {mask}"},
    ),
    Case("t5", "prefix-tuning", {"prompt.decoder": "copy", **NETWORK}),
    Case("t5", "p-tuning", NETWORK),
    Case("t5", "prompt-tuning", {"head.words": WORDS, "prompt.template": "{soft:3}{text} it is {mask} ."}),
)


def _made(family: str) -> Any:
    return seq2seq if family == "t5" else families


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sets that are learned from, and a store for each server."""
    folder = tmp_path_factory.mktemp("live")
    for seed, (split, count) in enumerate(SPLITS):
        rows = separable(count, seed=seed)
        pairs = [
            {**row, "text_pair": f"the {('film', 'book')[at % 2]} is fine"} for at, row in enumerate(rows)
        ]
        several = [
            {"text": row["text"], "labels": [row["label"], *(["film"] if "film" in row["text"] else [])]}
            for row in rows
        ]
        for kind, some in (("plain", rows), ("pairs", pairs), ("several", several)):
            write_jsonl(folder / f"{split}-{kind}.jsonl", some)
    return folder


@pytest.fixture(scope="module")
def servers(serve_package: Serve, folder: Path) -> dict[str, ServerProcess]:
    """A running server for each family, with no task at all."""
    started = {
        family: serve_package(
            "--backbone", str(_made(family).checkpoint(family)), "--dtype", "float32", "--threads", "1",
            "--store", f"file://{folder}/store-{family}", module="promptmux serve",
        )
        for family in dict.fromkeys(case.family for case in CASES)
    }  # fmt: skip
    return {family: server.ready() for family, server in started.items()}


def _values(family: str, folder: Path, data: str = "plain") -> dict[str, Any]:
    sets = {f"data.{split}": str(folder / f"{split}-{data}.jsonl") for split, _ in SPLITS}
    return {
        "backbone": str(_made(family).checkpoint(family)), "device": "cpu", "dtype": "float32", "seeds": [0],
        "optimiser.epochs": 1, "optimiser.batch_size": 16, "optimiser.evaluations": 1, **sets,
    }  # fmt: skip


def _config(case: Case, folder: Path) -> TrainConfig:
    trains = case.method != "hard-prompt" and "soft" not in str(case.settings.get("prompt.template"))
    length = {"prompt.num_virtual_tokens": 4} if trains else {}
    own = {"task_id": case.name, "output": str(folder / case.name), "method": case.method}
    values = _values(case.family, folder, case.data)
    if case.method == "hard-prompt":
        values = {key: value for key, value in values.items() if not key.startswith("optimiser.")}
    return load_config(None, {**values, **own, **length, **case.settings})


def _answers(server: ServerProcess, task_id: str, inputs: list[object]) -> list[dict[str, Any]]:
    """As soon as the server has the task."""
    deadline = time.monotonic() + PATIENCE
    while True:
        body = {"task_id": task_id, "input": inputs}
        answer = httpx.post(f"{server.url}/classify", json=body, timeout=PATIENCE)
        if answer.status_code != 404:
            assert answer.status_code == 200, answer.text
            return list(answer.json()["data"])
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.05)


def _check(server: ServerProcess, bone: Backbone, config: TrainConfig, file: Path, accuracy: float) -> None:
    """Probabilities as the trainer's backbone has them for the file, and the accuracy of the trainer's own table."""
    prompt, data = decode_prompt(file.read_bytes()), load_examples(config)
    pairs = [example.text_pair for example in data.test]
    answers = _answers(
        server, config.task_id,
        [e.text if e.text_pair is None else {"text": e.text, "text_pair": e.text_pair} for e in data.test],
    )  # fmt: skip
    rows = bone.row_encoder(prompt.manifest).encode(
        [e.text for e in data.test], pairs if data.has_pairs else None
    )
    expected = bone.score(rows, [bone.load_prompt(prompt)] * len(rows))
    for answer, probabilities in zip(answers, expected, strict=True):
        assert answer["probs"] == pytest.approx(list(probabilities), abs=1e-5)
    said = [set(answer["labels"] if config.multi_label else [answer["label"]]) for answer in answers]
    right = sum(labels == set(example.labels) for labels, example in zip(said, data.test, strict=True))
    assert right / len(said) == pytest.approx(accuracy)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_it_answers_as_the_trainer_said(
    case: Case, servers: Mapping[str, ServerProcess], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bone, config, server = _made(case.family).tiny(case.family), _config(case, folder), servers[case.family]
    monkeypatch.setattr("trainer.ranks.load_backbone", lambda *_, **__: bone)
    result = train(config, console=Console(file=io.StringIO()))
    by_store = CASES.index(case) % 2
    publish(
        result.prompt, f"file://{folder}/store-{case.family}" if by_store else server.admin_url, force=True
    )
    reported = json.loads((result.folder / "metrics.json").read_text())["summary"]
    row = result.rows[-1]
    assert reported[row.name]["accuracy"]["mean"] == row.scores[0].accuracy
    _check(server, bone, config, result.prompt, row.scores[0].accuracy)


def test_tasks_that_learned_together_answer_as_plain_ones(
    servers: Mapping[str, ServerProcess], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bone, server = families.tiny("bert"), servers["bert"]
    monkeypatch.setattr("trainer.ranks.load_backbone", lambda *_, **__: bone)
    values = {key: value for key, value in _values("bert", folder).items() if not key.startswith("data.")}
    lines = [f'output = "{folder}/together"', 'share = "factored"', "[defaults]", 'method = "prompt-tuning"']
    lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    for name in ("one", "two"):
        lines += ["[[task]]", f'task_id = "{name}"']
        lines += [f'data.{split} = "{folder}/{split}-plain.jsonl"' for split, _ in SPLITS]
    file = folder / "many.toml"
    file.write_text("\n".join(lines) + "\n")
    many = load_many(file)
    result = train_many(many, console=Console(file=io.StringIO()))
    assert list(result.finished) == ["one", "two"]
    for config in many.tasks:
        run = result.finished[config.task_id]
        publish(run.prompt, server.admin_url, force=True)
        accuracy = json.loads(run.metrics.read_text())["summary"]["prompt-tuning"]["accuracy"]["mean"]
        _check(server, bone, config, run.prompt, accuracy)
