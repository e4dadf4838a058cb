from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest import ports
from loadtest.ports import free_port, free_ports

ANOTHER = """
import sys
from loadtest.ports import _locked, free_port
print(*[_locked(int(port)) for port in sys.argv[1:]], free_port())
"""


def test_ports_are_free_and_each_is_given_once() -> None:
    given = [*free_ports(6), free_port(), *free_ports(2)]
    assert len(set(given)) == 9
    for port in given:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", port))


def test_no_other_process_is_given_a_port_while_this_one_lives() -> None:
    given = free_ports(3)
    told = subprocess.run(
        [sys.executable, "-c", ANOTHER, *map(str, given)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(ports.__file__).parents[1],
    ).stdout.split()
    assert told[:3] == ["False"] * 3
    assert int(told[3]) not in given  # it is given others


@pytest.mark.parametrize(
    ("system", "first", "last"),
    [
        ("32768\t60999\n", 20_768, 32_767),
        ("16000 65535", 4_000, 15_999),
        ("1024 49151", 49_152, 65_535),
        ("1024 65535", 20_768, 32_767),  # a busy machine's setting: all ports are given to connections
        (None, 20_768, 32_767),
        ("nothing of the kind", 20_768, 32_767),
    ],
)
def test_ports_are_not_those_of_outgoing_connections(
    system: str | None, first: int, last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "ip_local_port_range"
    if system is not None:
        told.write_text(system)
    monkeypatch.setattr(ports, "_EPHEMERAL", told)
    candidates = ports._not_ephemeral()
    assert (candidates[0], candidates[-1]) == (first, last)


def test_too_many_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_free", lambda port: False)
    monkeypatch.setattr(ports, "_locked", lambda port: True)
    with pytest.raises(OSError, match="no 1 free ports between"):
        free_port()
