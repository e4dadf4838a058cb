from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trainer import ConfigError, TrainConfig, load_config, to_toml
from trainer.run_folder import with_absolute_paths

MINIMAL = 'task_id = "t"\noutput = "run"\n[data]\ntrain = "train.jsonl"\n'


def test_file_and_flags_go_together_and_flags_win(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('method = "p-tuning-v2"\n' + MINIMAL + "[optimiser]\nepochs = 2\n")
    config = load_config(path, {"optimiser.epochs": 5, "optimiser.batch_size": None, "seeds": (7,)})
    assert (config.method, config.optimiser.epochs, config.seeds) == ("p-tuning-v2", 5, (7,))
    assert config.optimiser.batch_size is None


def test_paths_in_a_file_are_relative_to_it_and_hub_names_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(MINIMAL + 'dev = "hf:imdb:test"\n')
    config = load_config(path)
    assert config.data.train == str(tmp_path / "train.jsonl")
    assert config.output == str(tmp_path / "run")
    assert config.data.dev == "hf:imdb:test"


def test_a_backbone_that_is_a_folder_beside_the_file_is_a_path_and_else_an_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("model", "minilm"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "gpt2").mkdir()  # no model is in it, so that id goes on meaning what it means elsewhere
    (tmp_path / "runs").mkdir()
    path = tmp_path / "runs" / "config.toml"
    for given, expected in (
        ("../model", str(tmp_path / "model")),
        ("model", "model"),
        ("../gpt2", "../gpt2"),
        ("FacebookAI/roberta-base", "FacebookAI/roberta-base"),
    ):
        path.write_text(f'backbone = "{given}"\n{MINIMAL}')
        assert load_config(path).backbone == expected
    monkeypatch.chdir(tmp_path)
    for given, expected in (("model", str(tmp_path / "model")), ("minilm", "minilm"), ("gpt2", "gpt2")):
        config = load_config(path, {"backbone": given})
        assert config.backbone == given  # a flag is relative to the working folder
        assert with_absolute_paths(config).backbone == expected  # and the run folder is gone on with from any


def test_a_store_to_start_from_is_relative_to_the_file_however_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    for given, expected in (
        ("reviews@a store", f"reviews@{tmp_path / 'a store'}"),
        ("reviews@file://a%20store", f"reviews@{tmp_path / 'a store'}"),
        ("reviews:canary@file:///a/store", "reviews:canary@file:///a/store"),
        ("reviews@redis://host/0", "reviews@redis://host/0"),
    ):
        path.write_text(f'{MINIMAL}[prompt]\ninit_from = "{given}"\n')
        assert load_config(path).prompt.init_from == expected
        assert with_absolute_paths(load_config(path)).prompt.init_from == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "speed = 1\n", "data.speed: unknown setting"),
        ("colour = 1\n" + MINIMAL, "colour: unknown setting"),
        ('metod = "p-tuning"\n' + MINIMAL, "metod: unknown setting; did you mean method?"),
        (MINIMAL.replace("train =", "trian ="), "data.trian: unknown setting; did you mean data.train?"),
        (MINIMAL + "[optimizer]\nepochs = 1\n", "optimizer: unknown setting; did you mean optimiser?"),
        (
            MINIMAL + "[optimiser]\nepoch = 1\n",
            "optimiser.epoch: unknown setting; did you mean optimiser.epochs?",
        ),
        ("epochs = 1\n" + MINIMAL, "epochs: unknown setting; did you mean optimiser.epochs?"),
        ("prompt_lr = 1\n" + MINIMAL, "prompt_lr: unknown setting; did you mean optimiser.prompt_lr?"),
        ("share = 1\n[[task]]\n" + MINIMAL, "describes many tasks, which only promptmux train takes"),
        (MINIMAL + "[data.deep]\nx = 1\n", "data.deep: unknown setting"),
        (MINIMAL + '[[golden]]\ntext = "a"\nlable = "b"\n', "golden.0.lable: unknown setting"),
        (MINIMAL.replace('task_id = "t"\n', ""), "task_id: this setting is required"),
        (
            MINIMAL + '[prompt]\ninit = ["vocabulary", "labels"]\n',
            "prompt.init: 'vocabulary' fills all that is left, so nothing can come after it",
        ),
        (MINIMAL + "[optimiser]\nprompt_lr = -1\n", "optimiser.prompt_lr: "),
        (MINIMAL + "[optimiser]\nprompt_lr = nan\n", "optimiser.prompt_lr: "),
        (MINIMAL + "[optimiser]\nprompt_lr = 1e38\n", "optimiser.prompt_lr: expected at most 1e+30"),
        (MINIMAL + "[optimiser]\nweight_decay = 1e39\n", "optimiser.weight_decay: expected at most 1e+30"),
        (MINIMAL + "[head]\nscale = 2e6\n", "head.scale: Input should be less than or equal to 1000000"),
        (MINIMAL + "[optimiser]\nhead_lr = 1e38\n", "optimiser.head_lr: expected at most 1e+30"),
        ("seeds = [1, 1]\n" + MINIMAL, "the same seed twice"),
        (f"seeds = [{2**63}]\n" + MINIMAL, "seeds.0: Input should be less than"),
        ("seeds = [-1]\n" + MINIMAL, "seeds.0: Input should be greater than or equal to 0"),
        (MINIMAL + '[head]\ntype = "verbalizer"\n', "head.words"),
        ('method = "hard-prompt"\n' + MINIMAL + '[head]\ntype = "linear"\n', "trains nothing"),
        ('method = "head-only"\n' + MINIMAL + '[head]\ntype = "label_embeddings"\n', "linear head"),
        ("task_id = \n", "not a TOML file"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.toml")


def test_toml_reads_back_to_an_equal_configuration(
    tmp_path: Path, settings: Callable[..., TrainConfig]
) -> None:
    config = settings(
        labels=('a "quoted" one', "b\\ back", "tab\there", "émile \x7f"),
        head__descriptions={'a "quoted" one': "x = 1 # not a comment"},
        golden=({"text": "line\nbreak", "label": "b\\ back"}, {"text": "x", "text_pair": "y", "label": "é"}),
        prompt__template='{soft:"some words"} {text}',
        optimiser__prompt_lr=1e-05,
        calibrate=True,
    )
    path = tmp_path / "again.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert load_config(path) == config


def test_toml_keeps_golden_from_train(tmp_path: Path, settings: Callable[..., TrainConfig]) -> None:
    config = settings(golden="train")
    path = tmp_path / "again.toml"
    path.write_text(to_toml(config))
    assert load_config(path) == config


def test_at_most_four_golden_examples(settings: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ConfigError, match="at most 4"):
        settings(golden=tuple({"text": str(at), "label": "positive"} for at in range(5)))


@pytest.mark.parametrize(
    ("given", "unused"),
    [
        ({}, ()),
        ({"head__type": "linear", "head__words": {"a": ("x",)}}, ("head.words",)),
        ({"head__words": {"a": ("x",)}}, ()),
        ({"method": "hard-prompt", "head__words": {"a": ("x",)}, "optimiser__epochs": None,
          "optimiser__batch_size": None, "optimiser__evaluations": None, "optimiser__prompt_lr": None,
          "prompt__num_virtual_tokens": None}, ()),
        ({"method": "head-only", "head__words": {"a": ("x",)}, "head__start": "random", "prompt__task_text": "films"},
         ("head.words", "prompt.num_virtual_tokens", "prompt.task_text", "head.start", "optimiser.epochs",
          "optimiser.batch_size", "optimiser.prompt_lr", "optimiser.evaluations")),
    ],
)  # fmt: skip
def test_settings_without_effect_are_named(
    settings: Callable[..., TrainConfig], given: dict[str, object], unused: tuple[str, ...]
) -> None:
    """They are no error: defaults of many tasks may hold them, and a sweep's other settings may need them."""
    assert settings(**given).unused == unused
