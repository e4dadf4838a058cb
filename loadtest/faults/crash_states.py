"""What a store makes of the folder that a power cut left: does it open, what does it hold, does it go on.

Owns: opening either kind of store on such a folder, and looking. Must not know: how the folder came about, what was to
be expected of it.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from loadtest.faults.crash_scenarios import FILE_STORE, State, look, small_prompt
from loadtest.faults.operations import Tree, write_tree
from loadtest.faults.redis_log import mend_log
from loadtest.faults.redis_process import RedisProcess
from loadtest.faults.redis_server import find_redis_server
from loadtest.server_process import NotStarted
from prompt_store import PromptStoreError, open_store, version_of

FRESH = "after-the-cut"


@dataclass(frozen=True)
class Found:
    """What a reader sees (as `look` has it; None: the store does not open), and what is wrong in any case."""

    state: State | None
    wrong: str = ""


class Opener(Protocol):
    """Opens a kind of store on folders, one after the other."""

    def examine(self, tree: Tree) -> Found:
        """Look at the store in a folder that holds this, and use it."""

    def close(self) -> None:
        """Let go of everything."""


class _Scratch:
    """A place for one folder at a time: in memory where there is such a place, for syncs cost nothing there."""

    def __init__(self) -> None:
        memory = Path("/dev/shm")
        self._folder = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        self._loop = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._loop.close()
        self._folder.cleanup()

    def _made(self, tree: Tree) -> Path:
        root = Path(self._folder.name) / "root"
        shutil.rmtree(root, ignore_errors=True)
        write_tree(tree, root)
        return root


class FileOpener(_Scratch):
    """Opens a `FileStore`, in this process."""

    # Shared memory is not on the disk; should the file be there after a cut, it may hold anything.
    _NOISE = random.Random(0).randbytes(32768)

    def examine(self, tree: Tree) -> Found:
        """See `Opener`."""
        root = self._made(tree)
        if (FILE_STORE / "catalogue.sqlite3").as_posix() in tree:
            (root / FILE_STORE / "catalogue.sqlite3-shm").write_bytes(self._NOISE)
        url = (root / FILE_STORE).as_uri()
        found, left = self._loop.run(_use(url))
        return self._loop.run(_again(url, found, left)) if left else found


class RedisOpener(_Scratch):
    """Opens a `RedisStore` on a Redis of its own, that is started on the folder; `mended`: after redis-check-aof."""

    def __init__(self, *, mended: bool) -> None:
        super().__init__()
        self._server = find_redis_server()
        self._mended = mended

    def examine(self, tree: Tree) -> Found:
        """See `Opener`."""
        root = self._made(tree)
        redis = RedisProcess(Path(self._folder.name), server=self._server, dir=str(root))
        try:
            self._start(redis, root)
            found, left = self._loop.run(_use(redis.url))
            if left is None:
                return found
            redis.kill()
            self._start(redis, root)
            return self._loop.run(_again(redis.url, found, left))
        except NotStarted as error:
            return Found(None, str(error).strip().splitlines()[-1])
        finally:
            redis.kill()

    def _start(self, redis: RedisProcess, root: Path) -> None:
        if self._mended:
            mend_log(self._server, root)
        redis.start()


async def _use(url: str) -> tuple[Found, State | None]:
    """Look, publish, collect; and what must be seen from then on, if so far all is well."""
    store = open_store(url)
    try:
        state = await look(store)
    except PromptStoreError as error:
        await store.aclose()
        return Found(None, f"{type(error).__name__}: {error}"), None
    try:
        for task_id, task in state["tasks"].items():
            await store.history(task_id)
            for name, (_, targets) in task["aliases"].items():
                if not {version for version, _ in targets} <= set(task["versions"]):
                    return Found(state, f"the alias {name} leads to a version that is not there"), None
        data = small_prompt(FRESH, 0)
        published = await store.publish(data)
        await store.collect(grace=0)
        if not published.created or await store.get(FRESH, version_of(data)) != data:
            return Found(state, "a new version is not as it was published"), None
        left = await look(store)
        others = {task_id: task for task_id, task in left["tasks"].items() if task_id != FRESH}
        if (others, left["lost"]) != (state["tasks"], state["lost"]):
            return Found(state, "a publish and a collection changed other tasks"), None
    except PromptStoreError as error:
        return Found(state, f"does not go on: {type(error).__name__}: {error}"), None
    finally:
        await store.aclose()
    return Found(state), left


async def _again(url: str, found: Found, left: State) -> Found:
    """Whether the store, opened once more, is as it was left."""
    store = open_store(url)
    try:
        state = await look(store)
    except PromptStoreError as error:
        return Found(found.state, f"does not open again: {type(error).__name__}: {error}")
    finally:
        await store.aclose()
    return found if state == left else Found(found.state, "is another when it is opened again")
