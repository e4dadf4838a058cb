from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from backbone import Backbone
from client import AdminClient, Client, UnreachableError
from loadtest.ports import free_ports
from prompt_store import decode_prompt, encode_prompt, open_store, version_of
from tests.backbone.families import checkpoint
from trainer import ConfigError, RunResult, TrainConfig, TrainerError, publish, train
from trainer.errors import NotPublishedError
from trainer.publish import check_target

Settings = Callable[..., TrainConfig]
TEXTS = ["good great film", "terrible bad book"]
pytestmark = pytest.mark.usefixtures("no_drawing")


@pytest.fixture
def result(settings: Settings, console: Console) -> RunResult:
    return train(settings(method="head-only"), console=console)


async def test_to_a_store(result: RunResult, tmp_path: Path) -> None:
    target = f"file://{tmp_path / 'store'}"
    publication = await asyncio.to_thread(publish, result.prompt, target)
    assert (publication.created, publication.alias, publication.version) == (True, "current", result.version)
    again = await asyncio.to_thread(publish, result.prompt.read_bytes(), target, "canary")
    assert not again.created
    store = open_store(target)
    task = await store.task("tiny")
    assert {name: alias.version for name, alias in task.aliases.items()} == {
        "current": result.version,
        "canary": result.version,
    }
    assert await store.get("tiny", result.version) == result.prompt.read_bytes()
    await store.aclose()


def test_what_is_no_prompt_is_not_published(tmp_path: Path) -> None:
    target = f"file://{tmp_path / 'store'}"
    with pytest.raises(TrainerError, match="not published to"):
        publish(b"not a prompt", target)
    with pytest.raises(TrainerError, match="No such file"):
        publish(tmp_path / "none.safetensors", target)
    assert not (tmp_path / "store").exists()


def test_bad_targets_and_aliases_are_one_line(result: RunResult, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="not published to"):
        publish(result.prompt, "gopher://x")
    with pytest.raises(TrainerError, match="not published to"):
        publish(result.prompt, str(tmp_path / "store"), alias="Not An Alias")
    with pytest.raises(NotPublishedError, match=r"not published to http://127\.0\.0\.1:9"):
        publish(result.prompt, "http://127.0.0.1:9")


@pytest.mark.parametrize(
    "target", ["", "gopher://x", "redis:/one", "http://", "http://host:x", "http://[::1:8001"]
)
def test_what_is_no_target_is_said_before_anything_is_trained(target: str) -> None:
    with pytest.raises(ConfigError, match=f"^'{re.escape(target).replace('/one', '[*]+')}': "):
        check_target(target)


@pytest.mark.parametrize("place", [":8001", "host:80a0", "[::1", "127.0.0.1:9"])
def test_a_targets_password_is_not_shown(result: RunResult, place: str) -> None:
    with pytest.raises(TrainerError) as caught:
        publish(result.prompt, f"http://admin:hunter2@{place}")
    assert "admin" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "target", ["store", "file:///no/such/store", "redis://10.255.255.1:1/0", "http://127.0.0.1:9"]
)
def test_a_target_is_not_opened_to_be_checked(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_target(target)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A real server process on the tiny backbone: its public and its admin URL."""
    port, admin_port = free_ports(2)
    code = (
        "import sys; from server.process import serve; from server.settings import Settings; "
        f"sys.exit(serve(Settings(port={port}, admin_port={admin_port}, backbone={str(checkpoint('bert'))!r}, "
        f"dtype='float32', device='cpu', threads=1, store={'file://' + str(tmp_path / 'served')!r})))"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    log = (tmp_path / "server.log").open("wb")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log, env=environment)
    public = f"http://127.0.0.1:{port}"
    try:
        with Client(public) as client:
            while not _ready(client):
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.05)
        yield public, f"http://127.0.0.1:{admin_port}"
    finally:
        process.terminate()
        process.wait()
        log.close()


def _ready(client: Client) -> bool:
    try:
        return client.is_ready()
    except UnreachableError:
        return False


def test_to_a_running_server_which_then_serves_it(
    result: RunResult,
    settings: Settings,
    console: Console,
    server: tuple[str, str],
    bert: Backbone,
    tmp_path: Path,
) -> None:
    public, admin_url = server
    assert publish(result.prompt, admin_url).created
    with Client(public) as client, AdminClient(admin_url) as admin:
        answer = client.classify("tiny", TEXTS)
        assert answer.version == result.version
        assert [one.probs for one in answer.results] == [
            pytest.approx(p, abs=1e-4) for p in _locally(result, bert)
        ]
        # A second training of the same task, published and rolled back.
        second = train(settings(output=str(tmp_path / "second"), optimiser__epochs=1), console=console)
        assert publish(second.prompt, admin_url, force=True).version == version_of(second.prompt.read_bytes())
        assert client.classify("tiny", "good").version == second.version
        task = admin.task("tiny")
        assert {version.version for version in task.versions} == {result.version, second.version}
        admin.rollback("tiny", result.version, revision=task.aliases["current"].revision)
        assert client.classify("tiny", "good").version == result.version
        admin.delete_version("tiny", second.version)
        assert [task.task_id for task in admin.tasks()] == ["tiny"]
    with pytest.raises(TrainerError, match="422"):
        publish(_for_another_backbone(result.prompt.read_bytes()), admin_url)


def _locally(result: RunResult, backbone: Backbone) -> list[tuple[float, ...]]:
    prompt = decode_prompt(result.prompt.read_bytes())
    rows = backbone.row_encoder(prompt.manifest).encode(TEXTS)
    return backbone.score(rows, [backbone.load_prompt(prompt)] * len(rows))


def _for_another_backbone(data: bytes) -> bytes:
    prompt = decode_prompt(data)
    backbone = prompt.manifest.backbone.model_copy(update={"fingerprint": "0" * 64})
    return encode_prompt(prompt.manifest.model_copy(update={"backbone": backbone}), prompt.tensors)
