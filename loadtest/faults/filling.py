"""A store full of soft-prompt tasks: random prompts, right in shape for a backbone, published through the contract.

Owns: making the files and writing them with many calls at once. Must not know: which backend the store has, or what the
tasks are for.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np

from loadtest.prompts import make_prompt
from prompt_store import BackboneRef, PromptStore, Target, encode_prompt, open_store

_AT_ONCE: Final = 32  # calls; a backend has a bounded number of connections
_SEEDS: Final = 1_000_000  # as many as there are tasks at most: no prompt of one seed is one of another's


def soft_prompt_file(task_id: str, shape: BackboneRef, *, seed: int) -> bytes:
    """A soft prompt of 20 virtual tokens and a two-label head in 16 bits: half the bytes, and no worse for a load."""
    manifest, tensors = make_prompt(task_id, "soft", shape, seed=seed)
    return encode_prompt(manifest, {name: tensor.astype(np.float16) for name, tensor in tensors.items()})


async def fill(
    url: str, task_ids: Sequence[str], shape: BackboneRef, advance: Callable[[], object], *, seed: int = 0
) -> tuple[float, int]:
    """Publish one prompt for each task and make it current; the seconds that took, and the bytes of a file.

    `advance` is called after each.
    """
    store = open_store(url)
    began = time.monotonic()
    try:
        left = zip(itertools.count(seed * _SEEDS), task_ids, strict=False)
        sizes = await asyncio.gather(*(_publish(store, left, shape, advance) for _ in range(_AT_ONCE)))
    finally:
        await store.aclose()
    return time.monotonic() - began, max(sizes)


async def _publish(
    store: PromptStore, left: Iterator[tuple[int, str]], shape: BackboneRef, advance: Callable[[], object]
) -> int:
    size = 0
    for seed, task_id in left:
        data = soft_prompt_file(task_id, shape, seed=seed)
        published = await store.publish(data)
        await store.set_alias(task_id, "current", [Target(published.version)], expected_revision=0)
        advance()
        size = len(data)
    return size
