"""Owns the prompt's own tensors: from PEFT's rows to a prompt file's, and back.

    prompt_embeddings [n·S, width]        the first n rows → soft_prompt; S = 2 in encoder–decoders, else 1
    prompt_embeddings [n, 2·layers·H·D]   viewed as [n, layers, 2, H, D] → prefix.*.key, prefix.*.value;
                                          a decoder of two stacks has the layers that `decoder_slots` says
    MULTITASK_PROMPT_TUNING               prompt_embeddings ∘ (cols[task] @ rows[task]), arXiv 2303.02861, eq. 1

H and D are the heads for keys and their width, in PEFT's configuration as in ours. Knows no head and no manifest.
"""

from __future__ import annotations

import numpy as np

from prompt_store import BackboneRef
from prompt_store.prompt import Array
from trainer.errors import AdapterError
from trainer.peft_format import PROMPT, TASK_COLS, TASK_ROWS, Adapter


def own_tensors(adapter: Adapter) -> frozenset[str]:
    """The names of the tensors that the prompt is made of."""
    return frozenset({PROMPT, TASK_COLS, TASK_ROWS} if _has_tasks(adapter) else {PROMPT})


def task_index(adapter: Adapter, given: int | None) -> int | None:
    """Which of a multitask adapter's tasks is meant; None for the other kinds. Raises AdapterError."""
    if not _has_tasks(adapter):
        if given is not None:
            raise AdapterError("--task-index: only MULTITASK_PROMPT_TUNING adapters hold several tasks")
        return None
    tasks = min(len(_task_tensor(adapter, TASK_COLS)), len(_task_tensor(adapter, TASK_ROWS)))
    if given is None and tasks > 1:
        raise AdapterError(f"the adapter holds {tasks} tasks: choose one with --task-index 0 to {tasks - 1}")
    index = given or 0
    if not 0 <= index < tasks:
        raise AdapterError(f"--task-index: the adapter holds tasks 0 to {tasks - 1}, not {index}")
    return index


def soft_prompt(adapter: Adapter, shape: BackboneRef, task: int | None) -> Array:
    """[n, embedding_width]: the rows that PEFT puts before the text. Raises AdapterError."""
    count, rows = adapter.num_virtual_tokens, adapter.tensors[PROMPT]
    want = (count * adapter.submodules, shape.embedding_width)
    if rows.shape != want:
        raise AdapterError(
            f"the base model does not fit: for {count} virtual tokens on {shape.name} the tensor {PROMPT} must be "
            f"{list(want)}, and it is {list(rows.shape)}"
        )
    if task is not None:
        cols, ranks = _task_tensor(adapter, TASK_COLS), _task_tensor(adapter, TASK_ROWS)
        if cols.shape[1] != len(rows) or ranks.shape[1:] != (cols.shape[2], shape.embedding_width):
            raise AdapterError(
                f"{TASK_COLS} {list(cols.shape)} and {TASK_ROWS} {list(ranks.shape)} do not go with {PROMPT} "
                f"{list(rows.shape)}"
            )
        rows = rows * (cols[task] @ ranks[task])
    return np.ascontiguousarray(rows[:count], np.float32)


def prefix(adapter: Adapter, shape: BackboneRef, stack: str) -> dict[str, Array]:
    """Keys and values, [layers, n, kv_heads, head_dim] each, by their names in the file. Raises AdapterError."""
    count, rows, own = adapter.num_virtual_tokens, adapter.tensors[PROMPT], shape.stack(stack)
    width = own.kv_heads * own.head_dim
    layers = adapter.size("num_layers") or shape.layers
    heads = adapter.size("num_attention_heads") or own.kv_heads
    fits = (heads, adapter.size("token_dim") or width) == (own.kv_heads, width)
    # PEFT counts the encoder's layers unless it is told a number; with fewer than the stack has, it fails.
    fits = fits and own.layers <= layers
    if not fits or rows.shape != (count, 2 * layers * width):
        raise AdapterError(
            f"the base model does not fit: the prefix is for {layers} layers with {heads} heads for keys ({count} "
            f"virtual tokens, {PROMPT} {list(rows.shape)}), and {shape.name} has {own.layers} layers with "
            f"{own.kv_heads} heads of {own.head_dim}"
        )
    split = rows.reshape(count, layers, 2, own.kv_heads, own.head_dim)
    slots = range(own.layers) if shape.decoder is None else decoder_slots(layers, own.layers)
    split = split[:, list(slots)]
    keys, values = (np.ascontiguousarray(half) for half in split.transpose(2, 1, 0, 3, 4))
    return {f"prefix.{stack}.key": keys, f"prefix.{stack}.value": values}


def decoder_slots(learned: int, layers: int) -> list[int]:
    """Which learned layer PEFT gives to each of an encoder–decoder's decoder layers.

    PEFT lays the keys and values of all learned layers out twice and gives each decoder layer four of them, of which
    the first two become its key and value: layer i has those of the learned layer 2i, modulo their number.
    """
    return [2 * layer % learned for layer in range(layers)]


def prefix_rows(keys: Array, values: Array) -> Array:
    """[n, 2·layers·H·D]: what PEFT keeps of keys and values, [layers, n, H, D] each; the inverse of `prefix`."""
    rows = np.stack([keys, values]).astype(np.float32).transpose(2, 1, 0, 3, 4)
    return np.ascontiguousarray(rows.reshape(len(rows), -1))


def _has_tasks(adapter: Adapter) -> bool:
    return adapter.peft_type == "MULTITASK_PROMPT_TUNING"


def _task_tensor(adapter: Adapter, name: str) -> Array:
    tensor = adapter.tensors.get(name)
    if tensor is None or tensor.ndim != 3:
        raise AdapterError(f"the adapter's tensor {name} is missing or not [tasks, …, …]")
    return tensor
