"""Processes of one run, forked from one that has torch: started in no time, each with a launcher's environment."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["trainer.processes", "trainer.run", "trainer.many", "transformers.models.bert"]
)


@dataclass(frozen=True)
class Started:
    """Processes by rank, and where each says how it ended."""

    processes: list[BaseProcess]
    ends: list[Connection]

    def outcome(self, rank: int, seconds: float = 120) -> Any:
        """What a process came to: a value, or an error's class and words. Fails when it says nothing in time."""
        assert self.ends[rank].poll(seconds), f"process {rank} hangs"
        return self.ends[rank].recv()

    def stop(self) -> None:
        """End those that are left."""
        for process in self.processes:
            process.kill()
            process.join()


def start(
    function: Callable[..., object],
    *arguments: object,
    count: int = 2,
    answer_within: timedelta = timedelta(seconds=100),
) -> Started:
    """Start processes; the first calls `function(ranks, *arguments)`, the others help."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    processes, ends = [], []
    for rank in range(count):
        here, there = _CONTEXT.Pipe()
        environment = {
            "WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        process = _CONTEXT.Process(
            target=_run, args=(there, environment, answer_within, function, arguments), daemon=True
        )
        process.start()
        processes.append(process)
        ends.append(here)
    return Started(processes, ends)


def _run(
    end: Connection,
    environment: dict[str, str],
    answer_within: timedelta,
    function: Callable[..., object],
    arguments: tuple[object, ...],
) -> None:
    import torch

    from trainer import TrainerError
    from trainer.processes import Helper, join

    torch.set_num_threads(1)
    try:
        with join(environment, answer_within=answer_within) as ranks:
            if isinstance(ranks, Helper):
                ranks.help()
                result: object = "helped"
            else:
                result = function(ranks, *arguments)
    except TrainerError as error:
        result = (type(error).__name__, str(error))
    end.send(result)
