"""A check-up of a store: what is wrong where it is kept, and what to change.

Owns: which checks a URL gets, and reading everything there is. Must not know: any backend's checks, the command line.
Changes nothing, and makes no store where there is none.
"""

from prompt_store import open_store
from prompt_store.errors import CorruptVersion, NotFound, PromptStoreError
from prompt_store.file_checkup import examine_folder
from prompt_store.file_store import FileStore
from prompt_store.finding import Finding
from prompt_store.store import PromptStore

_SHOWN = 5


async def examine(url: str, *, deep: bool = False) -> list[Finding]:
    """Every finding about the store at `url`; `deep` reads every version. PromptStoreError for a URL that is none."""
    store = open_store(url)
    try:
        if isinstance(store, FileStore):
            findings, there = await examine_folder(store.root)
        else:
            # redis-py takes a moment to import: only for those who use it.
            from prompt_store.redis_checkup import examine_redis

            findings, there = await examine_redis(url)
        if deep and there:  # opening a store that is not there would make it
            findings.append(await read_all(store))
        return findings
    finally:
        await store.aclose()


async def read_all(store: PromptStore) -> Finding:
    """Whether every version of every task can be read and is what was published."""
    damaged: list[str] = []
    versions = size = 0
    after: str | None = None
    try:
        while True:
            page = await store.list(after=after, limit=500)
            damaged += [f"{task_id} (its record)" for task_id in page.unreadable]
            for task in page.tasks:
                for record in task.versions:
                    try:
                        size += len(await store.get(task.task_id, record.version))
                    except NotFound:
                        continue  # deleted since it was listed
                    except CorruptVersion:
                        damaged.append(f"{task.task_id} {record.version[:12]}")
                    versions += 1
            after = page.next
            if after is None:
                break
    except PromptStoreError as error:
        return Finding("every version", f"stopped after {versions:,}", "problem", str(error))
    if not damaged:
        return Finding("every version", f"{versions:,} read, {size:,} bytes, every digest right")
    named = ", ".join(damaged[:_SHOWN]) + (", …" if len(damaged) > _SHOWN else "")
    return Finding(
        "every version",
        f"{len(damaged)} of {versions:,} lost or damaged",
        "problem",
        f"publish them again: {named}",
    )
