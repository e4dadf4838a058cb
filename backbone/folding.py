"""A soft prompt at the front of a decoder, kept as keys and values.

Owns when that is exact, and how rows change by it. In a causal model nothing that follows changes the states of the
first tokens: what the text sees of them is their keys and values in every layer, which are the same in every request.
A prompt that is served keeps those, and its rows leave the virtual tokens out. Knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from backbone.prompts import DevicePrompt
from backbone.rows import Row
from prompt_store import BackboneRef

# Keys and values of all layers may take this many times the soft prompt's memory, and no more.
_MOST_GROWTH = 32


def pays(shape: BackboneRef) -> bool:
    """Whether keys and values are worth their memory on such a backbone."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim <= _MOST_GROWTH * shape.embedding_width


def soft_row(tokens: int) -> Row:
    """A row of nothing but the first virtual tokens."""
    return Row(tuple(~k for k in range(tokens)), tokens, tokens, ((0, tokens),), 0)


def keep_folded(
    prompt: DevicePrompt, lead: int, key_values: Callable[[Row, DevicePrompt], tuple[Tensor, Tensor]]
) -> DevicePrompt:
    """The prompt with its `lead` leading virtual tokens as keys and values besides, which `key_values` gives."""
    folded = prompt.with_prefix(*key_values(soft_row(lead), prompt))
    if lead == prompt.num_soft_tokens:  # no row needs the vectors any more
        folded = replace(folded, soft_prompt=None)
    return replace(prompt, folded=folded, folded_tokens=lead, nbytes=folded.nbytes)


def fold(
    rows: Sequence[Row], prompts: Sequence[DevicePrompt]
) -> tuple[Sequence[Row], Sequence[DevicePrompt]]:
    """Rows without their leading virtual tokens, under prompts that hold these as a prefix, where prompts do."""
    if all(prompt.folded is None for prompt in prompts):
        return rows, prompts
    pairs = [_fold(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]
    return [row for row, _ in pairs], [prompt for _, prompt in pairs]


def _fold(row: Row, prompt: DevicePrompt) -> tuple[Row, DevicePrompt]:
    lead = row.lead
    # A row without any text may lead with more virtual tokens than its prompt does; what is pooled must stay in it.
    if prompt.folded is None or lead != prompt.folded_tokens or any(begin < lead for begin, _ in row.spans):
        return row, prompt
    spans = tuple((begin - lead, end - lead) for begin, end in row.spans)
    shorter = replace(row, token_ids=row.token_ids[lead:], lead=0, second=row.second - lead, spans=spans)
    return shorter, prompt.folded
