"""The real command with the real built-in backbone: prompts of every kind, published, moved, and asked for at once."""

import asyncio
import random
from typing import Any

import httpx
import numpy as np
import pytest

from prompt_store import BackboneRef, LinearHead, LinearLayer, Manifest, MaxLength, encode_prompt, version_of
from tests.integration.conftest import PATIENCE, Serve, ServerProcess

HIDDEN, LAYERS, HEADS, WIDTH = 384, 6, 12, 32  # all-MiniLM-L6-v2
OCTETS = {"Content-Type": "application/octet-stream"}
WORDS = "a film that nobody asked for , warm and odd , with Überraschungen 映画 and too many numbers 1 2 3".split()


def prompt(
    task_id: str, fingerprint: str, seed: int, *, soft: int = 0, prefix: int = 0, pair: bool = False
) -> bytes:
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float) -> np.ndarray[Any, Any]:
        return (rng.normal(size=shape) * scale).astype(np.float32)

    labels = 2 + seed % 5
    tensors = {"head.0.weight": normal(labels, HIDDEN, scale=0.15), "head.0.bias": normal(labels, scale=0.1)}
    if soft:
        tensors["soft_prompt"] = normal(soft, HIDDEN, scale=0.1)
    if prefix:
        tensors["prefix.encoder.key"] = normal(LAYERS, prefix, HEADS, WIDTH, scale=0.5)
        tensors["prefix.encoder.value"] = normal(LAYERS, prefix, HEADS, WIDTH, scale=0.5)
    manifest = Manifest(
        task_id=task_id,
        labels=tuple(f"{task_id}-{seed}-{number}" for number in range(labels)),
        method="head-only",
        backbone=BackboneRef(
            name="minilm",
            fingerprint=fingerprint,
            embedding_width=HIDDEN,
            hidden_size=HIDDEN,
            layers=LAYERS,
            kv_heads=HEADS,
            head_dim=WIDTH,
        ),
        template=(f"{{soft:{soft}}}" if soft else "") + "{text}" + (" {text_pair}" if pair else ""),
        pooling="mean",
        position_offset=soft,
        max_length=MaxLength(tokens=128),
        head=LinearHead(layers=(LinearLayer(in_features=HIDDEN, out_features=labels),)),
    )
    return encode_prompt(manifest, tensors)


def publish(server: ServerProcess, task_id: str, data: bytes) -> str:
    admin, version = f"{server.admin_url}/admin/tasks/{task_id}", version_of(data)
    put = httpx.put(f"{admin}/versions/{version}", content=data, headers=OCTETS, timeout=PATIENCE)
    assert put.status_code in (200, 201), put.text
    alias = httpx.get(f"{admin}/aliases/current", timeout=PATIENCE)
    guard = {"If-Match": alias.headers["etag"]} if alias.status_code == 200 else {"If-None-Match": "*"}
    moved = httpx.put(f"{admin}/aliases/current", json={"version": version}, headers=guard, timeout=PATIENCE)
    assert moved.status_code == 200, moved.text
    return version


@pytest.fixture(scope="module", params=["1", "2"], ids=["one lane", "two lanes"])
def real(serve_package: Serve, request: pytest.FixtureRequest) -> ServerProcess:
    server = serve_package("--dtype", "float32", "--threads", request.param, module="promptmux serve").ready()
    fingerprint = server.events("backbone_loaded")[0]["fingerprint"]
    publish(server, "bare", prompt("bare", fingerprint, 1))
    publish(server, "soft", prompt("soft", fingerprint, 2, soft=12))
    publish(server, "prefix", prompt("prefix", fingerprint, 3, prefix=9))
    publish(server, "both", prompt("both", fingerprint, 4, soft=3, prefix=5))
    publish(server, "pair", prompt("pair", fingerprint, 5, pair=True))
    return server


def ask(server: ServerProcess, task_id: str, given: object) -> Any:
    body = {"task_id": task_id, "input": given}
    answer = httpx.post(f"{server.url}/classify", json=body, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_seed_of_another_backbone_was_skipped(real: ServerProcess) -> None:
    assert real.events("seed_skipped")[0]["file"] == "sentiment.safetensors"


def test_virtual_tokens_are_counted(real: ServerProcess) -> None:
    for task_id, virtual in (("bare", 0), ("soft", 12), ("prefix", 9), ("both", 8), ("pair", 0)):
        usage = ask(real, task_id, ["warm and odd"] * 2)["usage"]
        assert usage == {
            "prompt_tokens": 10,
            "virtual_tokens": 2 * virtual,
            "total_tokens": 10 + 2 * virtual,
            "completion_tokens": 0,
        }


async def test_requests_of_all_tasks_at_once_are_answered_as_if_alone(real: ServerProcess) -> None:
    rng = random.Random(3)
    asked = []
    for number in range(90):
        task_id = ("bare", "soft", "prefix", "both", "pair")[number % 5]
        text = " ".join(rng.choices(WORDS, k=rng.choice([1, 3, 10, 60, 300])))
        asked.append((task_id, {"text": text, "text_pair": "and more"} if task_id == "pair" else text))
    alone = [ask(real, task_id, [given])["data"][0]["probs"] for task_id, given in asked]
    async with httpx.AsyncClient(base_url=real.url, timeout=PATIENCE) as client:
        together = await asyncio.gather(
            *(client.post("/classify", json={"task_id": task, "input": [given]}) for task, given in asked)
        )
    for expected, answer in zip(alone, together, strict=True):
        np.testing.assert_allclose(answer.json()["data"][0]["probs"], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "text", ["\x00", "\x00\x01", "😀", "‮", "a" * 90_000, "a " * 45_000, "\U0010ffff", "[CLS] [SEP]"]
)
@pytest.mark.parametrize("task_id", ["bare", "both"])
def test_any_text_gets_scores(real: ServerProcess, task_id: str, text: str) -> None:
    answer = ask(real, task_id, text)["data"][0]
    assert sum(answer["probs"]) == pytest.approx(1.0, abs=1e-4)
    assert answer.get("truncated", False) == (text == "a " * 45_000)


async def test_no_request_sees_half_a_prompt_while_versions_change(real: ServerProcess) -> None:
    fingerprint = real.events("backbone_loaded")[0]["fingerprint"]
    files = [prompt("moving", fingerprint, seed, soft=5, prefix=4) for seed in (10, 11)]
    expected = {}
    for data in files:
        version = publish(real, "moving", data)
        expected[version] = ask(real, "moving", "warm and odd")["data"][0]["probs"]
    assert len(expected[version_of(files[0])]) != len(expected[version_of(files[1])])
    done = asyncio.Event()
    seen: list[str] = []

    async def keep_asking(client: httpx.AsyncClient) -> None:
        while not done.is_set():
            response = await client.post("/classify", json={"task_id": "moving", "input": "warm and odd"})
            answer = response.json()
            np.testing.assert_allclose(answer["data"][0]["probs"], expected[answer["version"]], atol=1e-5)
            assert answer["labels"][0].split("-")[1] == str(10 + len(answer["labels"]) - 2)
            seen.append(answer["version"])

    async with httpx.AsyncClient(base_url=real.url, timeout=PATIENCE) as client, asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(keep_asking(client))
        for move in range(10):
            version = await asyncio.to_thread(publish, real, "moving", files[move % 2])
            first = (await client.post("/classify", json={"task_id": "moving", "input": "x"})).json()
            assert first["version"] == version
        done.set()
    assert set(seen) == set(expected)


def test_a_backbone_that_does_not_exist_is_one_clear_line(serve: Serve) -> None:
    server = serve("--backbone", "/does/not/exist", module="promptmux serve")
    assert server.exit_code() == 2
    assert server.stderr[-1].startswith("promptmux serve: backbone /does/not/exist")
    assert "Traceback" not in "\n".join(server.stderr)
