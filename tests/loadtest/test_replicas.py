from __future__ import annotations

import signal
from pathlib import Path

import pytest

from loadtest.faults.replicas import Replica, replicas
from loadtest.server_process import NotStarted


def test_each_starts_stops_and_starts_anew_by_itself(tmp_path: Path) -> None:
    with replicas(2, f"file://{tmp_path}/store", tmp_path, backbone="fake") as (one, two):
        ports = {one.port, one.admin_port, two.port, two.admin_port}
        assert len(ports) == 4
        assert one.process.resident_bytes() > 10**7
        assert one.metrics()["promptmux_ready"] == 1.0
        capacity = "promptmux_tier_capacity_bytes"
        tiers = [one.metrics(tier=tier)[capacity] for tier in ("device", "host", "disk")]
        assert sum(tiers) == one.metrics()[capacity] > tiers[0] > 0
        assert one.metrics(tier="device")["promptmux_ready"] == 1.0
        assert one.stop() == 0
        assert not one.running
        assert two.metrics()["promptmux_ready"] == 1.0
        assert one.start() > 0
        assert one.starts == 2
        assert "ready" in one.process.said()
        with pytest.raises(RuntimeError, match="runs already"):
            one.start()
        two.kill()
        assert two.process.popen.returncode == -signal.SIGKILL
    assert not one.running
    assert one.process.popen.returncode == 0


def test_a_second_ctrl_c_leaves_none_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Replica, *, patience: float = 60.0) -> int:
        raise KeyboardInterrupt

    made: list[Replica] = []

    def run() -> None:
        flags = ("--leave-delay", "30")
        with replicas(2, f"file://{tmp_path}/store", tmp_path, backbone="fake", flags=flags) as both:
            made.extend(both)
            monkeypatch.setattr(Replica, "ended", interrupt)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert len(made) == 2
    assert [replica.process.popen.returncode for replica in made] == [-signal.SIGKILL] * 2


def test_one_that_does_not_start_is_told_with_its_log(tmp_path: Path) -> None:
    with (
        pytest.raises(NotStarted, match=r"replica-0: (.|\n)*no-such-flag"),
        replicas(1, f"file://{tmp_path}/store", tmp_path, backbone="fake", flags=("--no-such-flag",)),
    ):
        pass
    never = Replica("never", (1, 2), [], tmp_path)
    assert not never.running
    never.close()
    with pytest.raises(RuntimeError, match="never started"):
        _ = never.process
