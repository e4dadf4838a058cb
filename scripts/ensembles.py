"""What an ensemble of these prompt files gains and costs on this machine: the figures of docs/methods/ensembles.md.

    python scripts/ensembles.py runs/trec6/seeds/seed-*.safetensors --test ../shared/data/trec6/test.jsonl

Accuracy (without --test it is left out): of each file, of the mean of their probabilities as it is served, and of their
majority vote, ties going to the mean's label among those that tie. Cost: one lane (one core of a CPU), as the server
runs a batch; the ways take turns, and medians are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from backbone import Backbone, DevicePrompt, load_backbone
from prompt_store import Manifest, decode_prompt, join_prompts
from trainer import Columns, read_examples

TEXT = "What is the name of the river that runs through the old city?"


def accuracy(
    frozen: Backbone,
    manifest: Manifest,
    members: Sequence[DevicePrompt],
    ensemble: DevicePrompt,
    names: Sequence[str],
    test: str,
) -> None:
    """Print the accuracy of single-label prompts on the examples in `test`."""
    examples = read_examples(test, Columns())
    rows = frozen.row_encoder(manifest).encode([e.text for e in examples], [e.text_pair for e in examples])
    gold = np.array([manifest.labels.index(e.labels[0]) for e in examples])
    each = np.array([frozen.score(rows, [one] * len(rows)) for one in members])  # [members, texts, labels]
    mean = np.array(frozen.score(rows, [ensemble] * len(rows)))
    alone = [float((one.argmax(axis=1) == gold).mean()) for one in each]
    for name, value in zip(names, alone, strict=True):
        print(f"{100 * value:.1f} %  {name}")
    votes = np.eye(mean.shape[1])[each.argmax(axis=2)].sum(axis=0)  # [texts, labels]
    ways = {"mean of probabilities": mean, "majority vote": votes + mean / 2}
    print(f"{100 * statistics.fmean(alone):.1f} ± {100 * statistics.stdev(alone):.1f} %  one of them")
    for way, values in ways.items():
        print(f"{100 * float((values.argmax(axis=1) == gold).mean()):.1f} %  {way}")
    agree = float((each.argmax(axis=2) == each[0].argmax(axis=1)).all(axis=0).mean())
    print(f"all agree on {100 * agree:.1f} % of {len(examples)} texts")


def medians(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each way, in turns, so that a neighbour on the machine slows all of them."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def cost(
    frozen: Backbone,
    manifest: Manifest,
    members: Sequence[DevicePrompt],
    ensemble: DevicePrompt,
    rounds: int,
) -> None:
    """Print the time of one member's forward, of the ensemble's, and of one for each member after another."""
    for texts in (1, 16):
        rows = frozen.row_encoder(manifest).encode([TEXT] * texts)

        def forward(*prompts: DevicePrompt, rows: Sequence[object] = rows) -> Callable[[], object]:
            return lambda: [frozen.score_on_lane(rows, [one] * len(rows)) for one in prompts]  # type: ignore[arg-type]

        ways = {
            "one member": forward(members[0]),
            "the ensemble": forward(ensemble),
            "its members one after another": forward(*members),
        }
        medians(ways, 5)  # warm
        for name, seconds in medians(ways, rounds).items():
            print(f"{1000 * seconds:.2f} ms  {texts} × {len(rows[0])} tokens, {name}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="prompt files of one task, each of one prompt")
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--test", help="examples with their labels")
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    files = [(file.name, file.read_bytes()) for file in options.files]
    joint = decode_prompt(join_prompts(files))
    frozen = load_backbone(options.backbone)
    members = [frozen.load_prompt(decode_prompt(data)) for _, data in files]
    ensemble = frozen.load_prompt(joint)
    if options.test:
        names = [name for name, _ in files]
        accuracy(frozen, joint.manifest, members, ensemble, names, options.test)
    cost(frozen, joint.manifest, members, ensemble, options.rounds)


if __name__ == "__main__":
    main()
