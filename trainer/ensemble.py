"""Owns the ensemble of a run's seeds: one prompt file of all of them, and how it scores as served. Trains nothing and
knows no folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from backbone import Backbone
from prompt_store import decode_prompt, encode_prompt, join_prompts
from trainer.data import TaskData
from trainer.evaluation import Encoded, logits, score
from trainer.prompt_file import PromptFile
from trainer.scores import Scores


def join_seeds(
    backbone: Backbone,
    data: TaskData,
    files: Mapping[int | None, PromptFile],
    splits: Mapping[str, Encoded],
) -> PromptFile:
    """The finished prompt files of these seeds as one, its members in the seeds' order.

    `splits` are the tokenised "dev" and "test", which is empty where the run has none.
    """
    joint = decode_prompt(join_prompts([(f"seed {seed}", file.data) for seed, file in files.items()]))
    served = backbone.load_prompt(joint)
    scored: dict[str, Scores] = {
        name: score(
            logits(backbone, served, split.rows), split.targets, data.labels, multi_label=data.multi_label
        )
        for name, split in splits.items()
        if name in ("dev", "test") and len(split)
    }
    dev = scored["dev"]
    record: dict[str, JsonValue] = {"accuracy": round(dev.accuracy, 6), "macro_f1": round(dev.macro_f1, 6)}
    manifest = joint.manifest.model_copy(update={"training": joint.manifest.training | {"dev": record}})
    return PromptFile(
        encode_prompt(manifest, joint.tensors),
        dev,
        scored.get("test", dev),
        _notes(list(files.values()), len(manifest.golden)),
    )


def _notes(files: Sequence[PromptFile], golden: int) -> tuple[str, ...]:
    """What a person should know: golden examples that not every seed gets right are not the ensemble's."""
    most = max(len(decode_prompt(file.data).manifest.golden) for file in files)
    if golden == most:
        return ()
    return (f"the ensemble has {golden} golden examples: those that every seed answers right",)
