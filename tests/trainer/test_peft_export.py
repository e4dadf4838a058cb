"""Exported folders give the prompt's logits: PEFT loads them, and README.md's lines run as they stand."""

from __future__ import annotations

import errno
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, processors
from torch import Tensor

from prompt_store import decode_prompt, encode_prompt
from tests.backbone.prompts import manifest, tensors
from tests.docs.pages import blocks
from tests.trainer.peft_folders import LONG, PAIRS, TEXTS, WINDOW, adapter, base, config_of, logits
from tests.trainer.test_peft_import import NEAR, backbone, ours
from trainer import TrainConfig, train
from trainer.errors import AdapterError
from trainer.peft_export import export_peft
from trainer.peft_import import Choices, Imported, import_peft


def page_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """README.md's `logits`, run in the folder that it stands in."""
    (code,) = [
        block.text for block in blocks((folder / "README.md").read_text()) if block.language == "python"
    ]
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code, "README.md", "exec"), names)
    made: Callable[..., Tensor] = names["logits"]
    return made


def quiet(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("bert", "PROMPT_TUNING"), ("bert", "PREFIX_TUNING"), ("roberta", "P_TUNING"), ("albert", "PROMPT_TUNING"),
        ("modernbert", "PROMPT_TUNING"), ("llama", "PREFIX_TUNING"), ("opt", "PROMPT_TUNING"),
        ("xlm-roberta", "PREFIX_TUNING"), ("electra", "PREFIX_TUNING"), ("qwen2", "PREFIX_TUNING"),
        ("gpt2", "PREFIX_TUNING"), ("qwen3", "PROMPT_TUNING"),
    ],
)  # fmt: skip
def test_what_was_imported_goes_back_and_forth(
    family: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = base(family)
    wrapped = adapter(tmp_path / "it", kind, family)
    first = import_peft(tmp_path / "it", Choices(task_id="it"))
    done = export_peft(first.data, tmp_path / "out", backbone=str(where))
    assert done.task_type == "SEQ_CLS"
    page = page_of(tmp_path / "out", monkeypatch)
    for text, pair in zip(TEXTS, PAIRS, strict=True):
        torch.testing.assert_close(quiet(page, text), logits(wrapped, where, text), **NEAR)
        torch.testing.assert_close(quiet(page, text, pair), logits(wrapped, where, text, pair), **NEAR)
    again = import_peft(tmp_path / "out", Choices(task_id="it"))
    one, two = decode_prompt(first.data), decode_prompt(again.data)
    assert one.tensors.keys() == two.tensors.keys()
    assert all(np.array_equal(one.tensors[name], two.tensors[name]) for name in one.tensors)
    drop = {"method", "training"}
    assert one.manifest.model_dump(exclude=drop) == two.manifest.model_dump(exclude=drop)
    # Every key that PEFT's own class writes, and no other.
    theirs = config_of(
        "PREFIX_TUNING" if kind == "PREFIX_TUNING" else "PROMPT_TUNING", family, "SEQ_CLS"
    ).to_dict()
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text()).keys() == theirs.keys()


def trained(settings: Callable[..., TrainConfig], console: Console, family: str, **more: Any) -> Path:
    """A prompt of our own trainer, for a tiny backbone with all of its parts."""
    config = settings(backbone=str(base(family)), optimiser__epochs=2, **more)
    return train(config, console=console).prompt


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize(
    ("family", "more", "reason"),
    [
        ("bert", {"method": "p-tuning-v2", "prompt.pooling": "pooler"}, "shifts the text's positions by 4"),
        ("llama", {"method": "prompt-tuning", "prompt.pooling": "last"}, "has a bias"),
    ],
)
def test_prompts_that_were_trained_here_give_their_logits_in_peft(
    family: str, more: dict[str, Any], reason: str, settings: Callable[..., TrainConfig], console: Console,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data = trained(settings, console, family, **more).read_bytes()
    done = export_peft(data, tmp_path / "out", backbone=str(base(family)))
    assert done.task_type == "FEATURE_EXTRACTION"
    assert reason in done.reason
    equal(data, tmp_path / "out", family, monkeypatch)


DEEP = {"type": "linear", "layers": ({"in_features": 24, "out_features": 6, "activation": "gelu", "norm_eps": 1e-3},
                                     {"in_features": 6, "out_features": 2})}  # fmt: skip
VECTORS = {"type": "label_embeddings", "descriptions": ("a", "b"), "scale": 9.0}


@pytest.mark.parametrize(
    ("family", "soft", "fields", "reason"),
    [
        ("bert", 4, {}, "the mean over the text's tokens"),
        ("bert", 4, {"pooling": 2, "head": VECTORS}, "label embeddings"),
        (
            "roberta",
            0,
            {"pooling": "cls", "calibration": {"temperature": 0.4, "bias": (0.3, -1.0)}},
            "shifts",
        ),
        ("electra", 4, {"pooling": "row", "head": DEEP}, "the mean over the whole row"),
        ("albert", 4, {"pooling": "pooler"}, "through the model's pooler"),
        ("modernbert", 4, {"pooling": "cls"}, "reads place 0, the prompt reads place 4"),
        (
            "gpt2",
            0,
            {"position_offset": 2, "pooling": "mean"},
            "shifts the text's positions by 3, the prompt by 2",
        ),
        ("opt", 0, {"pooling": "last"}, "shifts"),
    ],
)
def test_what_a_stock_classifier_does_not_read(
    family: str,
    soft: int,
    fields: dict[str, Any],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bone = backbone(base(family))
    own, weights = manifest(bone, soft=soft, **fields), tensors(bone, soft=soft, prefix=0 if soft else 3)
    if "head" in fields:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
        shapes = {"verbalizer.label_embeddings": (2, 24)} if fields["head"] is VECTORS else {
            "head.0.weight": (6, 24), "head.0.bias": (6,), "head.0.norm.weight": (6,), "head.0.norm.bias": (6,),
            "head.1.weight": (2, 6), "head.1.bias": (2,),
        }  # fmt: skip
        weights |= {name: torch.randn(*shape) for name, shape in shapes.items()}
    data = encode_prompt(own, {name: tensor.numpy() for name, tensor in weights.items()})
    done = export_peft(data, tmp_path / "out", backbone=str(base(family)))
    assert done.task_type == "FEATURE_EXTRACTION"
    assert reason in done.reason
    equal(data, tmp_path / "out", family, monkeypatch)


def equal(data: bytes, folder: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """README.md's logits are those of the prompt file."""
    where, prompt = base(family), decode_prompt(data)
    page, want = page_of(folder, monkeypatch), ours(Imported(data, prompt.manifest, ()), where, TEXTS)
    for text, row in zip(TEXTS, want, strict=True):
        torch.testing.assert_close(quiet(page, text), row, **NEAR)
    assert torch.stack(want).std(dim=0).min() > 1e-3


def remade(data: bytes, tensors: dict[str, Any] | None = None, **changes: Any) -> bytes:
    """A prompt file with other fields in its manifest, or other tensors."""
    prompt = decode_prompt(data)
    manifest = type(prompt.manifest).model_validate({**prompt.manifest.model_dump(), **changes})
    return encode_prompt(manifest, {**prompt.tensors, **(tensors or {})})


def test_a_decoders_scores_without_a_bias_are_a_stock_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bone = backbone(base("llama"))
    weights = {name: tensor.numpy() for name, tensor in tensors(bone, soft=4).items()}
    weights["head.0.bias"] = np.zeros(2, np.float32)
    data = encode_prompt(manifest(bone, soft=4, calibration={"temperature": 0.3}), weights)
    assert export_peft(data, tmp_path / "out", backbone=str(base("llama"))).task_type == "SEQ_CLS"
    equal(data, tmp_path / "out", "llama", monkeypatch)


def test_a_prefix_behind_the_models_pooler_is_a_stock_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bone = backbone(base("bert"))
    own = manifest(
        bone, pooling="pooler", position_offset=3, calibration={"temperature": 2.0, "bias": (1.0, 0.0)}
    )
    data = encode_prompt(own, {name: tensor.numpy() for name, tensor in tensors(bone, prefix=3).items()})
    assert export_peft(data, tmp_path / "out", backbone=str(base("bert"))).task_type == "SEQ_CLS"
    equal(data, tmp_path / "out", "bert", monkeypatch)


def test_a_pooler_of_the_prompts_own_goes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter(tmp_path / "it", "PREFIX_TUNING", "bert")
    data = import_peft(tmp_path / "it", Choices(task_id="it")).data
    other = decode_prompt(data).tensors["head.0.weight"] * np.float32(1.5)
    data = remade(data, {"head.0.weight": other})
    assert export_peft(data, tmp_path / "out", backbone=str(base("bert"))).task_type == "SEQ_CLS"
    equal(data, tmp_path / "out", "bert", monkeypatch)


@pytest.mark.parametrize("biases", [{}, {"classifier_bias": True, "norm_bias": True}])
def test_modernberts_own_head_goes_along(
    biases: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = base("modernbert", **biases)
    wrapped = adapter(
        tmp_path / "it", "PROMPT_TUNING", "modernbert", on=where, modules_to_save=["head", "classifier"]
    )
    data = import_peft(tmp_path / "it", Choices(task_id="it")).data
    assert export_peft(data, tmp_path / "out", backbone=str(where)).task_type == "SEQ_CLS"
    page = page_of(tmp_path / "out", monkeypatch)
    for text in TEXTS:
        torch.testing.assert_close(quiet(page, text), logits(wrapped, where, text), **NEAR)
    if not biases:  # PEFT would drop what the model has no place for
        data = remade(data, {"head.0.norm.bias": decode_prompt(data).tensors["head.0.norm.bias"] + 1})
        assert "has a bias" in export_peft(data, tmp_path / "no", backbone=str(where)).reason


def test_label_words_of_a_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter(tmp_path / "it", "P_TUNING", "gpt2", "CAUSAL_LM")
    words = {"yes": ["good", "great"], "no": ["bad"]}
    data = import_peft(tmp_path / "it", Choices(words=words, template="{text} it was {mask}")).data
    assert export_peft(data, tmp_path / "out", backbone=str(base("gpt2"))).task_type == "CAUSAL_LM"
    equal(data, tmp_path / "out", "gpt2", monkeypatch)


def test_a_window_holds_the_prefix_the_text_and_what_stands_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`counts = "text"` leaves special tokens out, and PEFT's window counts them."""
    where = tmp_path / "qwen3"
    shutil.copytree(base("qwen3"), where)
    core = Tokenizer.from_file(str(where / "tokenizer.json"))
    begin = core.id_to_token(3)
    core.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, 3)])
    core.save(str(where / "tokenizer.json"))
    bone = backbone(where)
    weights = {name: tensor.numpy() for name, tensor in tensors(bone, prefix=3).items()}
    for tokens, fits in ((WINDOW - 3 - 1, True), (WINDOW - 3, False)):
        limit = {"tokens": tokens, "counts": "text"}
        data = encode_prompt(manifest(bone, pooling="last", max_length=limit), weights)
        if not fits:
            with pytest.raises(AdapterError, match=f"rows of {WINDOW + 1} places"):
                export_peft(data, tmp_path / "no", backbone=str(where))
            continue
        export_peft(data, tmp_path / "out", backbone=str(where))
        made = Imported(data, decode_prompt(data).manifest, ())
        page = page_of(tmp_path / "out", monkeypatch)
        torch.testing.assert_close(quiet(page, LONG), ours(made, where, (LONG,))[0], **NEAR)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"template": "{text}{soft:5}", "position_offset": 0}, "behind other parts"),
        ({"template": "{start}{soft:5}{text}", "position_offset": 0}, "behind other parts"),
        ({"position_offset": 0}, "counts positions through"),
        ({"template": "{soft:5}{text}{mask}", "pooling": "mask"}, "{mask}"),
        ({"template": "{soft:5}{text} {mask}"}, "{mask}"),  # though its classifier reads what PEFT's reads
        ({"template": "{soft:5}it was {text}", "pooling": "mean"}, "cannot tell apart"),
        ({"pooling": "mean"}, "segments"),
    ],
)
def test_what_peft_cannot_hold(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    adapter(tmp_path / "it", "PROMPT_TUNING", "bert")
    data = remade(import_peft(tmp_path / "it", Choices(task_id="it")).data, **changes)
    with pytest.raises(AdapterError) as caught:
        export_peft(data, tmp_path / "out", backbone=str(base("bert")))
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_no_half_of_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, room = Path.write_bytes, iter((True, False))

    def until_full(path: Path, data: bytes) -> int:
        if not next(room):
            write(path, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    adapter(tmp_path / "it", "PROMPT_TUNING", "bert")
    data, folder = import_peft(tmp_path / "it", Choices(task_id="it")).data, tmp_path / "out"
    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", until_full)
        with pytest.raises(AdapterError, match=r"out: No space left on device$"):
            export_peft(data, folder, backbone=str(base("bert")))
    assert export_peft(data, folder, backbone=str(base("bert"))).folder == folder


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    adapter(tmp_path / "it", "PROMPT_TUNING", "bert")
    data = import_peft(tmp_path / "it", Choices(task_id="it")).data
    with pytest.raises(AdapterError, match="not an empty folder"):
        export_peft(data, tmp_path / "it", backbone=str(base("bert")))
