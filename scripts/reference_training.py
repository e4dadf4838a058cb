"""Owns what docs/reference/training.md says: every setting of a training run, with each method's own default.

A setting without words, and words without a setting, are errors of whoever writes the page (`scripts.reference`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from scripts.reference_tables import default_of, table, type_of
from trainer.config import TrainConfig
from trainer.many_config import MAX_RANK, Share
from trainer.methods import DEFAULTS, MIN_STEPS

TEXT = """
What `promptmux train` and `sweep` take. Each is a key of the TOML file (`optimiser.epochs` is `epochs` in the table
`[optimiser]`) and can be said with `--set optimiser.epochs=2`; the most used have [flags of their own](cli.md). Both
win over the file. In a file of many tasks each can stand in `[defaults]` and in each `[[task]]`; `output`,
`rows_at_once`, `share` and `rank` stand at its top
([many tasks](../guides/train.md#many-tasks-in-one-go)).

Where a default is the method's own, it is filled before anything runs: the run folder's `config.toml` and the prompt
file's training record name what ran.
"""

_SHARES = " or ".join(f"`{value}`" for value in get_args(Share))
MANY = f"""## At the top of a file of many tasks

| key | takes | default | what it is |
|---|---|---|---|
| `output` | text | required | the folder in which each task's run folder is made |
| `rows_at_once` | whole number (≥ 1) | 128 on a CPU, 2,048 on a GPU | the most rows of one step, all tasks together |
| `share` | {_SHARES} | – | [tasks that learn together](../methods/mpt.md) |
| `rank` | whole number (≥ 1, ≤ {MAX_RANK}) | `1` | of each task's factor; only with `share = "factored"` |
"""

SECTIONS: Mapping[str, str] = {
    "": "## The run",
    "data": "## `[data]`: where the examples are",
    "prompt": "## `[prompt]`: template, soft prompt or prefix, and how they start",
    "head": "## `[head]`: what turns a pooled state into scores",
    "optimiser": "## `[optimiser]`: how it is trained",
    "golden": "## `[[golden]]`: examples that servers check",
}

WORDS: Mapping[str, str] = {
    "task_id": "the task, as requests name it",
    "method": "[the methods](../methods/README.md)",
    "output": "the run folder; on the command line `runs/TASK-METHOD` where it is not given",
    "backbone": "the frozen model: minilm, a folder, or a Hugging Face id",
    "device": "auto, cpu, cuda or cuda:N",
    "dtype": "what the frozen model computes in; auto is bfloat16 where the machine has it. What is trained is float32",
    "labels": "the labels in their order; default: those of the training set, sorted",
    "multi_label": "several labels may hold at once: a sigmoid for each, and the column `labels`",
    "seeds": "one run each, all in the same batches; the best on dev is published",
    "ensemble": "publish all seeds' prompts as one [ensemble](../methods/ensembles.md)",
    "calibrate": "fit a temperature on dev at the end; for `hard-prompt` on the training set, and a bias of each label",
    "golden": "examples that each server checks before it serves the version; at most four. `train`: short ones of the "
    "training set, of different labels",
    "log_with": "[experiment logs](../guides/train.md#experiment-logs): tensorboard, wandb, mlflow and others",
    "rows_at_once": "the most rows of one step, all prompts together; default 128 on a CPU, 2,048 on a GPU",
    "data.train": "a JSONL, CSV or TSV file, a folder with `*.pos` and `*.neg` or with `train.*`, or `hf:NAME`",
    "data.dev": "what chooses; default: split off the training set, stratified by label",
    "data.test": "what is reported once; default: split off the training set before dev is",
    "data.format": "how files are read; auto goes by the name",
    "data.text_column": "the column with the text",
    "data.text_pair_column": "the column with the second text of a pair",
    "data.label_column": "the column with the label",
    "data.labels_column": "the column with several labels",
    "data.label_separator": "between several labels in one cell of a CSV or TSV file",
    "data.encoding": "of the files; default UTF-8, and cp1252 for `*.pos` and `*.neg` that are no UTF-8",
    "data.dev_fraction": "the share of the rest that becomes dev where none is given",
    "data.test_fraction": "the share that becomes test where none is given; 0: no test set",
    "data.split_seed": "which ones these are",
    "prompt.template": "[the template](prompt-file.md): `{text}`, `{text_pair}`, `{mask}`, `{soft:20}` and words",
    "prompt.num_virtual_tokens": "n, the length of the soft prompt or prefix",
    "prompt.init": "[what virtual tokens start from](../methods/prompt-tuning.md), one after the other: words of "
    "`prompt.task_text`, a mean vector of each label (a prefix: its tokens), common words of the training texts; or "
    "random",
    "prompt.task_text": "a sentence that says what the task is",
    "prompt.init_from": "[another task's prompt](../methods/spot.md) to start from: a prompt file, a run folder or "
    "TASK@STORE",
    "prompt.init_version": "the version that was found there; filled by the run",
    "prompt.reparameterisation": "[the network](../methods/README.md) that makes the prompt while it is trained",
    "prompt.encoder_hidden_size": "that network's inner width",
    "prompt.pooling": "which state the head reads; default: the mean of the text's tokens, on decoders the last, with "
    "words the mask. A number is a position",
    "prompt.decoder": "what an encoder-decoder's decoder reads ([encoder-decoders](../guides/encoder-decoders.md))",
    "prompt.max_tokens": "longer texts are cut",
    "prompt.max_length_counts": "whether that counts the text alone, or template and soft prompt with it",
    "prompt.cut": "on which side",
    "head.type": "default: verbalizer where `head.words` are given, label embeddings for `hard-prompt`, else linear",
    "head.start": "the linear head that is best without a prompt, small random numbers, or `prompt.init_from`'s head",
    "head.words": "for each label words of one token, whose scores at the mask are its own",
    "head.aggregate": "how several words' scores become one",
    "head.descriptions": "for each label a text that is compared with the input, and that `prompt.init`'s labels start "
    "from; default: its name",
    "head.scale": "the factor of these cosines",
    "optimiser.epochs": f"default: the method's, or as many as make {MIN_STEPS} steps",
    "optimiser.batch_size": "rows of one prompt in a step",
    "optimiser.prompt_lr": "AdamW's rate for the prompt, or for the network's weights; the default depends on "
    "`prompt.reparameterisation`, in brackets",
    "optimiser.head_lr": "AdamW's rate for the head; 0 keeps it as it starts",
    "optimiser.weight_decay": "AdamW's, on everything that is trained",
    "optimiser.warmup": "the share of the steps in which rates rise linearly; then they fall linearly to zero",
    "optimiser.clip_norm": "the largest norm of one prompt's gradient, its head's included",
    "optimiser.averaging": "decay of the weights' moving average, which is scored and published; 0: the last weights",
    "optimiser.word_dropout": "the share of words left out of each training text, drawn anew each epoch",
    "optimiser.evaluations": "how often dev is scored, evenly over the run; the best is kept",
    "optimiser.patience": "so many of them without a better one end the run",
    "golden[].text": "the text",
    "golden[].text_pair": "the second text of a pair",
    "golden[].label": "what the prompt must answer",
}


def parts() -> Iterator[str]:
    """The page's text and tables, in order. Raises LookupError where settings and words are not the same."""
    found = dict(_settings(TrainConfig))
    if found.keys() != WORDS.keys():
        raise LookupError(f"training settings and their words differ: {sorted(found.keys() ^ WORDS.keys())}")
    yield TEXT
    for section, heading in SECTIONS.items():
        rows = [
            (f"`{name}`", type_of(field.annotation, field.metadata), _default(name, field), WORDS[name])
            for name, field in found.items()
            if (name.rpartition(".")[0].removesuffix("[]")) == section
        ]
        yield f"{heading}\n\n{table(('setting', 'takes', 'default', 'what it is'), rows)}"
    yield MANY.strip()


def _settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _settings(kind, f"{name}.")
            continue
        yield prefix + name, field
        if name == "golden":
            from trainer.config import GoldenConfig

            yield from _settings(GoldenConfig, "golden[].")


def _default(name: str, field: FieldInfo) -> str:
    """The default, or the methods' own where they differ or fill it."""
    short = name.rpartition(".")[2]
    if name == "prompt.reparameterisation":
        return _grouped({method: f"`{next(iter(of.networks))}`" for method, of in DEFAULTS.items()})
    if name == "optimiser.prompt_lr":
        return "; ".join(
            f"{method}: {', '.join(f'{rate:g} (`{network}`)' for network, rate in of.networks.items())}"
            for method, of in DEFAULTS.items()
        )
    if field.default is None and hasattr(next(iter(DEFAULTS.values())), short):
        return _grouped({method: _shown(getattr(of, short)) for method, of in DEFAULTS.items()})
    return default_of(field)


def _shown(value: object) -> str:
    return ", ".join(f"`{one}`" for one in value) if isinstance(value, tuple) else f"`{value}`"


def _grouped(by_method: Mapping[str, str]) -> str:
    """One value where all methods have it, else each with its methods."""
    values = dict.fromkeys(by_method.values())
    if len(values) == 1:
        return next(iter(values))
    return "; ".join(
        f"{value} ({', '.join(method for method, own in by_method.items() if own == value)})"
        for value in values
    )
