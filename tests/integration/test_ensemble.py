"""From examples to answers: three seeds trained, joined, published to a running server, asked beside other tasks."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from prompt_store import encode_prompt, version_of
from tests.backbone.families import checkpoint, tiny
from tests.backbone.prompts import manifest, tensors
from tests.integration.conftest import PATIENCE, Serve, ServerProcess
from tests.integration.test_real import ask, publish
from tests.trainer.conftest import separable, write_jsonl
from trainer import load_config, train

SEEDS = (0, 1, 2)
TEXTS = ("the film is good", "this dull book", "great", "not terrible not fine the the film")
OCTETS = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three seeds, whose prompt is the best one's."""
    folder = tmp_path_factory.mktemp("run")
    sets = {
        f"data.{name}": str(write_jsonl(folder / f"{name}.jsonl", separable(count, seed=seed)))
        for seed, (name, count) in enumerate((("train", 64), ("dev", 24), ("test", 24)))
    }
    config = load_config(None, {
        "task_id": "tiny", "output": str(folder / "run"), "backbone": str(checkpoint("bert")), "device": "cpu",
        "dtype": "float32", "seeds": SEEDS, "method": "p-tuning-v2", "prompt.num_virtual_tokens": 4,
        "optimiser.epochs": 1, "optimiser.batch_size": 16, "optimiser.evaluations": 1, "optimiser.prompt_lr": 0.5,
        **sets,
    })  # fmt: skip
    return train(config, console=Console(file=io.StringIO())).folder


@pytest.fixture(scope="module")
def served(serve_package: Serve, run_folder: Path) -> ServerProcess:
    """A server with the ensemble as `current` of its task, its members beside it, and two other tasks."""
    joint = run_folder / "ensemble.safetensors"
    members = [str(run_folder / "seeds" / f"seed-{seed}.safetensors") for seed in SEEDS]
    command = [sys.executable, "-m", "promptmux", "ensemble", *members, "--output", str(joint)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert made.returncode == 0, made.stderr
    assert version_of(joint.read_bytes()) in made.stdout
    server = serve_package(
        "--backbone", str(checkpoint("bert")), "--dtype", "float32", "--threads", "2", module="promptmux serve"
    ).ready()  # fmt: skip
    bone = tiny("bert")
    for task_id, soft, prefix in (("soft", 3, 0), ("prefix", 0, 5)):
        own = manifest(bone, soft=soft, task_id=task_id)
        arrays = {name: t.numpy() for name, t in tensors(bone, soft=soft, prefix=prefix).items()}
        publish(server, task_id, encode_prompt(own, arrays))
    for member in members:
        data = Path(member).read_bytes()
        url = f"{server.admin_url}/admin/tasks/tiny/versions/{version_of(data)}"
        assert httpx.put(url, content=data, headers=OCTETS, timeout=PATIENCE).status_code == 201
    publish(server, "tiny", joint.read_bytes())
    return server


def members_of(folder: Path) -> list[str]:
    return [version_of((folder / "seeds" / f"seed-{seed}.safetensors").read_bytes()) for seed in SEEDS]


async def test_the_answer_is_the_mean_of_the_members_answers(served: ServerProcess, run_folder: Path) -> None:
    asked: list[dict[str, Any]] = [
        {"task_id": task_id, "input": text, **({"version": version} if version else {})}
        for text in TEXTS
        for task_id, version in (
            ("tiny", None),
            ("soft", None),
            *(("tiny", version) for version in members_of(run_folder)),
            ("prefix", None),
        )
    ]
    async with httpx.AsyncClient(base_url=served.url, timeout=PATIENCE) as client:
        answers = await asyncio.gather(*(client.post("/classify", json=body) for body in asked * 3))
    probs = [answer.json()["data"][0]["probs"] for answer in answers]
    spread = 0.0
    for at in range(0, len(probs), 6):
        ensemble, _, one, two, three, _ = probs[at : at + 6]
        np.testing.assert_allclose(ensemble, np.mean([one, two, three], axis=0), atol=1e-5)
        spread = max(spread, float(np.ptp([one, two, three], axis=0).max()))
    assert spread > 0.01, "seeds that answer alike would prove nothing"
    for body, got in zip(asked, probs, strict=False):
        if body["task_id"] != "tiny":
            np.testing.assert_allclose(
                got, ask(served, body["task_id"], body["input"])["data"][0]["probs"], atol=1e-5
            )


def test_the_callers_text_counts_once_and_the_device_works_three_times(
    served: ServerProcess, run_folder: Path
) -> None:
    text = TEXTS[0]
    member = {"task_id": "tiny", "input": text, "version": members_of(run_folder)[0]}
    single = httpx.post(f"{served.url}/classify", json=member, timeout=PATIENCE).json()["usage"]
    before = counted(served)
    usage = ask(served, "tiny", text)["usage"]
    rows, tokens = (after - was for after, was in zip(counted(served), before, strict=True))
    assert usage["prompt_tokens"] == single["prompt_tokens"]
    assert usage["virtual_tokens"] == 3 * single["virtual_tokens"] == 12
    assert (rows, tokens) == (3, 3 * single["total_tokens"])


def counted(server: ServerProcess) -> tuple[float, float]:
    """Rows and tokens that the device has had."""
    page = httpx.get(f"{server.admin_url}/metrics", timeout=PATIENCE).text
    sums = {
        sample.name: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name in ("promptmux_batch_rows_sum", "promptmux_batch_tokens_sum")
    }
    return sums["promptmux_batch_rows_sum"], sums["promptmux_batch_tokens_sum"]
