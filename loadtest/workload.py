"""What load tests send: texts of realistic lengths, and which task each request is for.

Standard library only; imports nothing of the project, so that it can drive any server.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Literal, get_args

Mix = Literal["identical", "uniform", "zipf"]
MIXES: tuple[Mix, ...] = get_args(Mix)

_WORDS = (
    "the a this that of and with for about from quiet story song train garden city morning friend letter "
    "river window market kitchen winter road bright slow gentle honest strange clever heavy warm late early "
    "never often almost really hardly ever makes brings keeps finds leaves opens carries wants knows walks "
    "hears answers remembers builds paints because although while until where nobody everyone somebody "
    "first second last great poor fine awful lovely dull price ticket order parcel account hotel recipe phone "
    "doctor team match concert"
).split()


def texts(count: int, *, seed: int = 0, mean: float = 24.0, least: int = 2, most: int = 61) -> list[str]:
    """`count` nonsense sentences whose lengths in words are spread like those of film review snippets.

    A word is a token; with the full stop and two special tokens: 5 to 64 tokens, 27 on average.
    """
    rng = random.Random(seed)
    return [_sentence(rng, max(least, min(most, round(rng.gauss(mean, mean * 0.42))))) for _ in range(count)]


def long_texts(count: int, *, seed: int = 0, median: float = 80.0, most: int = 509) -> list[str]:
    """`count` nonsense texts from a line to a page: many short ones and a long tail, up to 512 tokens."""
    rng = random.Random(seed)
    return [
        _sentence(rng, max(2, min(most, round(rng.lognormvariate(math.log(median), 0.9)))))
        for _ in range(count)
    ]


def _sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(_WORDS, k=words)) + "."


def task_ids(count: int) -> list[str]:
    """Names of the load test's tasks."""
    return [f"load-{number:06d}" for number in range(count)]


def named_tasks(text: str) -> list[str]:
    """The tasks that a command line names: ids with commas between them, or `load:COUNT` of the load test's own."""
    return task_ids(int(text[5:])) if text.startswith("load:") else text.split(",")


def task_choices(mix: Mix, count: int, *, seed: int = 0, exponent: float = 1.1) -> Iterator[int]:
    """Endless indices of tasks: always the same one, all equally often, or by Zipf's law."""
    rng = random.Random(seed)
    if mix == "identical":
        yield from itertools.repeat(0)
    elif mix == "uniform":
        while True:
            yield rng.randrange(count)
    else:
        weights = list(itertools.accumulate(1.0 / rank**exponent for rank in range(1, count + 1)))
        population = range(count)
        while True:
            yield from rng.choices(population, cum_weights=weights, k=1024)
