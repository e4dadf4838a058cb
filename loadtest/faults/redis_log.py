"""Mending Redis's log before Redis is started on it, as an operator's start script does.

Owns: calling redis-check-aof. Must not know: who starts Redis, what is in the log.

Redis 7.0 cuts a torn log back by itself, but to the last whole command, also inside a transaction. It forgets that
transaction in memory and leaves its beginning in the log, where the next one is appended; on the start after that both
run as one, and half a call is visible. redis-check-aof cuts back to the last whole transaction. Valkey's
pull request 4342 mends the server itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


def mend_log(server: Path, folder: Path) -> None:
    """Cut the log in `folder` back to its last whole transaction, where there is a log.

    A log that cannot be mended stays as it is: the server says what is wrong with it.
    """
    # Beside the server, or where Debian's package has it inside; the server's program is also this one, called so.
    places = (str(server.parent), str(server.parent / "usr" / "bin"), os.environ.get("PATH", ""))
    program = shutil.which("redis-check-aof", path=os.pathsep.join(places)) or str(server)
    libraries = ":".join(str(folder) for folder in server.parent.glob("usr/lib/*-linux-gnu*"))
    variables = {**os.environ, **({"LD_LIBRARY_PATH": libraries} if libraries else {})}
    for log in (*folder.glob("appendonlydir/*.manifest"), *folder.glob("appendonly.aof")):
        done = subprocess.run(
            ["redis-check-aof", "--fix", str(log)],
            executable=program,
            env=variables,
            input=b"y\n",
            capture_output=True,
            timeout=60,
            check=False,
        )
        if not done.stdout:
            raise RuntimeError(f"redis-check-aof did not run: {done.stderr.decode(errors='replace')[-300:]}")
