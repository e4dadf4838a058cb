"""Owns how long the rows of an imported adapter may be: what PEFT's model has room for, and what the caller says.

Knows the backbone's places, its tokenizer's limit and PEFT's sliding windows; knows no tensors. What a person should
know goes to `notes`.
"""

from __future__ import annotations

from typing import Any

from backbone import Backbone
from trainer.errors import AdapterError
from trainer.peft_format import Adapter
from trainer.peft_heads import window_of


def most_places(
    adapter: Adapter, backbone: Backbone, config: Any, given: int | None, limit: int, notes: list[str]
) -> int:
    """The most places of a row, soft prompts included.

    `given` is the max_length that the tokenizer was called with, or None: then it cuts at `limit`, its own
    `model_max_length`, which is a number past all bounds where nobody set one.

    Raises:
        AdapterError: no place is left for the text.

    """
    room, why, windowed = _room(adapter, backbone, config)
    tokens = room if given is None else min(room, given)
    if given is not None and given > room:
        notes.append(f"texts are cut at {room} tokens and not at {given}: {why}")
    elif given is None and limit < min(room, backbone.max_positions):
        tokens = limit
        notes.append(
            f"texts are cut at {limit} tokens, the model_max_length of the base model's tokenizer; if PEFT was given "
            "longer ones, say how long with --max-length"
        )
    elif given is None and windowed:
        notes.append(f"texts are cut at {room} tokens: {why}")
    elif given is None and backbone.max_positions < room and backbone.max_positions < backbone.longest_row:
        # T5's positions are relative: it reads more than it was trained at, but only for somebody who asks for it.
        tokens = backbone.max_positions
        notes.append(
            f"texts are cut at {tokens} tokens, for which {backbone.name} was made; PEFT reads all that the tokenizer "
            "leaves: if that was more, say how much with --max-length"
        )
    return tokens + (0 if adapter.is_prefix else adapter.num_virtual_tokens)


def _room(adapter: Adapter, backbone: Backbone, config: Any) -> tuple[int, str, bool]:
    """How many tokens of text there is room for, what ends it, and whether that is a window."""
    count, places = adapter.num_virtual_tokens, backbone.longest_row
    # Virtual tokens take positions, of a prefix too: where there are two stacks those of the decoder, not the text's.
    taken = 0 if adapter.is_prefix and backbone.shape.decoder is not None else count
    room = places - taken
    why = f"{backbone.name} has places for {places}"
    if taken:
        why += f", of which the virtual tokens take {taken}"
    window = window_of(config) if adapter.is_prefix else None
    windowed = window is not None and window - taken < room
    if window is not None and windowed:
        places, room = window, window - taken
        why = f"behind that PEFT's sliding window ({window}) loses sight of the prefix, which here it never does"
    if room < 1:
        raise AdapterError(
            f"{backbone.name} has {places} positions, and the {count} virtual tokens leave none for the text"
        )
    return room, why, windowed
