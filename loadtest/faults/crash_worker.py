"""`python -m loadtest.faults.crash_worker KIND SCENARIO PHASE MARKS`: the program that the power cut ends.

Owns: starting a scenario in its working directory, with a Redis if it wants one, and telling whose syncs are whose.
Must not know: what a scenario does, what survives.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

from loadtest.faults.crash_scenarios import FILE_STORE, SCENARIOS, Diary, Place
from loadtest.faults.redis_log import mend_log
from loadtest.faults.redis_process import RedisProcess
from loadtest.faults.redis_server import find_redis_server
from loadtest.faults.syscalls import LABEL
from loadtest.server_process import leave_on_sigterm


def name_syncs(diary: Diary) -> None:
    """Let every sync that Python code asks for be preceded by the names of the functions that asked."""
    fsync = os.fsync

    def named(descriptor: Any) -> None:
        names: list[str] = []
        frame: FrameType | None = sys._getframe(1)
        file = frame.f_code.co_filename if frame else ""
        while frame is not None and frame.f_code.co_filename == file:
            if frame.f_code.co_name not in names:  # once, however deep a folder lies
                names.insert(0, frame.f_code.co_name)
            frame = frame.f_back
        diary.say(f"{LABEL}{Path(file).stem}: {' > '.join(names)}")
        fsync(descriptor)

    os.fsync = named  # type: ignore[assignment]  # the name of its parameter is another


def main() -> None:
    """Do one phase of one scenario to a store in the working directory."""
    leave_on_sigterm()  # a Redis that it has started is in a session of its own
    kind, name, phase, marks = sys.argv[1:]
    diary = Diary(Path(marks))
    name_syncs(diary)
    scenario = SCENARIOS[kind][name][phase]
    if kind == "file":
        asyncio.run(scenario(diary, Place(FILE_STORE.absolute().as_uri())))
        return
    program = find_redis_server()
    if kind == "redis, mended":
        mend_log(program, Path.cwd())
    own = tempfile.TemporaryDirectory()
    with own as folder, RedisProcess(Path(folder), server=program, dir=str(Path.cwd())) as server:
        asyncio.run(scenario(diary, Place(server.url, server)))


if __name__ == "__main__":
    main()
