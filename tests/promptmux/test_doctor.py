"""`promptmux doctor` as a person uses it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadtest.faults.redis_process import RedisProcess
from prompt_store import open_store
from prompt_store.finding import Finding
from promptmux import machine
from promptmux.__main__ import build

PROMPT = Path(__file__).resolve().parents[2] / "examples" / "prompts" / "sentiment.safetensors"


@pytest.fixture(autouse=True)
def fine_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs the tests may be no good server: `test_machine` looks into that."""
    monkeypatch.setattr(machine, "examine_machine", lambda *_: [Finding("memory", "plenty")])
    for name in ("PROMPTMUX_STORE", "PROMPTMUX_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def doctor(*arguments: str, **variables: str) -> tuple[int, str]:
    result = CliRunner().invoke(build(), ["doctor", *arguments], env=variables)
    assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit), (
        result.exception
    )
    return result.exit_code, result.output


@pytest.fixture
def store(tmp_path: Path) -> str:
    async def publish() -> None:
        store = open_store(str(tmp_path / "store"))
        await store.publish(PROMPT.read_bytes())
        await store.aclose()

    asyncio.run(publish())
    return str(tmp_path / "store")


def test_a_good_store(store: str) -> None:
    code, said = doctor("--store", store, "--deep")
    assert code == 0, said
    for part in (
        "check",
        "verdict",
        "found",
        "what to change",
        "every digest right",
        "this machine",
        "plenty",
    ):
        assert part in said


def test_a_bad_one_ends_with_one_and_names_what_to_change(tmp_path: Path) -> None:
    with RedisProcess(tmp_path, appendonly=False, maxmemory_policy="allkeys-lru") as redis:
        code, said = doctor("--store", redis.url)
    assert code == 1
    assert "redis-cli CONFIG SET appendonly yes" in said
    assert "redis-cli CONFIG SET maxmemory-policy noeviction" in said
    assert "CONFIG REWRITE" in said
    assert said.splitlines()[-1] == "2 problems: appendonly, maxmemory-policy"


def test_for_machines(tmp_path: Path) -> None:
    code, said = doctor("--json", "--store", "redis://ann:secret@127.0.0.1:1/0")
    body = json.loads(said)
    assert code == body["problems"] == 1
    assert "secret" not in said
    first, *_, last = body["findings"]
    assert first == {
        "section": "store", "name": "Redis", "found": "does not answer", "verdict": "problem",
        "advice": "Redis cannot be reached: check that it runs, and the store's URL",
    }  # fmt: skip
    assert last["section"] == "machine"


def test_the_store_is_the_servers_unless_named(store: str, tmp_path: Path) -> None:
    assert store in doctor(PROMPTMUX_STORE=store)[1]
    config = tmp_path / "server.toml"
    config.write_text(f'store = "{store}"\n')
    assert store in doctor("--config", str(config))[1]
    assert json.loads(doctor("--json")[1])["store"] == "file://promptmux-store"


def test_settings_and_urls_that_are_none(tmp_path: Path) -> None:
    assert doctor("--config", str(tmp_path / "absent.toml"))[0] == 2
    result = CliRunner().invoke(build(), ["doctor", "--store", "redis://host/x"])
    assert "a database's number" in str(result.exception)


def test_on_a_narrow_terminal_the_advice_stands_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    monkeypatch.setattr("promptmux.commands.output.console", lambda: Console(width=80, highlight=False))
    with RedisProcess(tmp_path, appendonly=False, timeout=30) as redis:
        _, said = doctor("--store", redis.url)
    lines = [line.rstrip() for line in said.splitlines()]
    assert max(map(len, lines)) <= 80
    assert "  redis-cli CONFIG SET timeout 0" in lines, "a command is on a line of its own, to be copied"
    assert lines.index("timeout: warning") < lines.index("appendonly: problem"), "the worst stands last"
