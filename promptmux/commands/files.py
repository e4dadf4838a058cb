"""Which file a person means who names one: of a run folder, the prompt in it."""

from __future__ import annotations

from pathlib import Path

_PROMPT = "prompt.safetensors"  # what a training leaves in its folder to be published


def prompt_file(named: Path) -> Path:
    """The prompt file of a run folder; what was named else, which need not be there."""
    inside = named / _PROMPT
    return inside if inside.is_file() else named


def named_file(named: str) -> Path:
    """The same where the id of a task may be named as well: a folder is what has a slash in it."""
    return prompt_file(Path(named)) if "/" in named else Path(named)
