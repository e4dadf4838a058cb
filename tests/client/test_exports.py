from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import client


def test_exports() -> None:
    assert client.__all__ == [
        "AdminClient", "Alias", "Answer", "ApiError", "AsyncAdminClient", "AsyncClient", "Client", "ClientError",
        "DeadlineExceeded", "Event", "InvalidAnswer", "InvalidCall", "OutcomeUnknown", "Receipt", "Result", "Retries",
        "ServedTask", "TaskInfo", "Traffic", "UnreachableError", "Uploaded", "VersionInfo",
    ]  # fmt: skip
    assert all(hasattr(client, name) for name in client.__all__)


def test_it_needs_httpx_alone() -> None:
    code = "import client, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "httpx" in loaded
    assert not loaded & {
        "prompt_store",
        "server",
        "trainer",
        "backbone",
        "promptmux",
        "torch",
        "numpy",
        "pydantic",
    }


@pytest.mark.parametrize(
    ("one", "other"), [(client.Client, client.AsyncClient), (client.AdminClient, client.AsyncAdminClient)]
)
def test_both_kinds_do_the_same(one: type, other: type) -> None:
    def shown(kind: type) -> dict[str, str]:
        names = [name for name in vars(kind) if not name.startswith("_")]
        return {name: str(inspect.signature(getattr(kind, name))) for name in names}

    blocking, awaiting = shown(one), shown(other)
    assert blocking == {name: text.replace("AsyncIterator", "Iterator") for name, text in awaiting.items()}
    assert len(blocking) > 2
    for kind in (one, other):
        assert all(getattr(kind, name).__doc__ for name in blocking)


def test_help_shows_what_a_method_takes_and_gives() -> None:
    assert (
        str(inspect.signature(client.Client.is_ready))
        == "(self, *, timeout: 'float | None' = None) -> 'bool'"
    )
    assert client.Client.classify.__name__ == "classify"


def test_types_are_delivered() -> None:
    assert (Path(client.__file__).parent / "py.typed").is_file()
