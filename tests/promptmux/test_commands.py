"""The command line as a person uses it: what it prints, how it ends.

`run` starts a process, one at least for what each test is about: a file, a pipe, a whole new interpreter. `here` is the
same command in this one, which has torch already and so takes a hundredth of the time.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backbone import load_backbone
from prompt_store import decode_prompt, encode_prompt
from promptmux.__main__ import _COMMANDS, main
from server.auth import Keyring, parse_keys

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ROOT / "examples" / "prompts"


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "promptmux", *arguments],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def here(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["promptmux", *arguments])
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        patch.chdir(ROOT)
        with pytest.raises(SystemExit) as ended:
            main()
    return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), out.getvalue(), err.getvalue())


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


def test_help_names_every_command() -> None:
    shown = run("--help").stdout
    for command in (
        "serve",
        "train",
        "predict",
        "publish",
        "rollback",
        "canary",
        "promote",
        "tasks",
        "inspect",
    ):
        assert command in shown


@pytest.mark.parametrize("command", sorted(_COMMANDS))
def test_every_command_explains_itself(command: str) -> None:
    # The bench's own help comes from a process that it starts.
    shown = (run if command == "bench" else here)(command, "--help")
    assert shown.returncode == 0, shown.stderr
    assert f"promptmux {command}" in shown.stdout
    assert "Traceback" not in shown.stderr


def test_inspect_shows_the_manifest() -> None:
    file = str(PROMPTS / "sentiment.safetensors")
    shown = run("inspect", file)
    assert shown.returncode == 0, shown.stderr
    for part in ("sentiment", "prompt-tuning", "{soft:20}", "negative, positive", "soft_prompt"):
        assert part in shown.stdout
    assert re.search(
        r"^ +settings\.optimiser +averaging [0-9.]+, batch_size [0-9]+,", shown.stdout, re.MULTILINE
    )
    manifest = json.loads(here("inspect", "--json", file).stdout)
    assert manifest["task_id"] == "sentiment"
    digest = manifest["training"]["data"]["digests"]["train"]
    assert digest[:12] in shown.stdout
    assert digest not in shown.stdout


def test_inspect_shows_any_training_record(tmp_path: Path) -> None:
    prompt = decode_prompt((PROMPTS / "sentiment.safetensors").read_bytes())
    record: dict[str, Any] = {
        "peft": {}, "note": None, "dev": {"accuracy": 0.5, "by": {"label": [1, "[b]"], "deep": [{"a": 1}]}}
    }  # fmt: skip
    file = tmp_path / "other.safetensors"
    for training, lines in (
        (
            record,
            ["training", 'dev.by deep [{"a": 1}], label 1 [b]', "dev accuracy 0.5", "note null", "peft {}"],
        ),
        ({}, ["training not told"]),
    ):
        manifest = prompt.manifest.model_copy(update={"training": training})
        file.write_bytes(encode_prompt(manifest, dict(prompt.tensors)))
        shown = [" ".join(line.split()) for line in here("inspect", str(file)).stdout.splitlines()]
        at = shown.index(lines[0])
        assert shown[at : at + len(lines)] == lines


def test_inspect_refuses_what_is_no_prompt(tmp_path: Path) -> None:
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes((PROMPTS / "sentiment.safetensors").read_bytes()[:-5])
    assert "promptmux: " in one_line(run("inspect", str(torn)))
    pickled = tmp_path / "model.bin"
    pickled.write_bytes(b"\x80\x04\x95" + b"x" * 40)
    assert "safetensors" in one_line(here("inspect", str(pickled)))
    assert one_line(here("inspect", str(tmp_path / "absent")))


def test_publish_list_and_roll_back_in_a_store(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    first = run("publish", str(PROMPTS / "sentiment.safetensors"), "--store", store)
    assert first.returncode == 0, first.stderr
    assert "published sentiment" in first.stdout
    assert "already there" in here("publish", str(PROMPTS / "sentiment.safetensors"), "--store", store).stdout
    listed = here("tasks", "--store", store).stdout
    assert "sentiment" in listed
    version = next(word for word in first.stdout.split() if len(word.strip(",")) == 64).strip(",")
    shown = run("tasks", "sentiment", "--store", store).stdout
    assert version in shown
    assert here("rollback", "sentiment", version[:6], "--store", store).returncode == 0
    assert "no version" in one_line(here("rollback", "sentiment", "zzz", "--store", store))
    assert "promptmux: " in one_line(here("tasks", "nosuch", "--store", store))
    assert "deleted 0 files" in here("collect", "--grace", "0", "--store", store).stdout
    assert "no alias" in one_line(
        here("rollback", "sentiment", version, "--alias", "curent", "--store", store)
    )
    assert "no store" in one_line(here("tasks", "--store", str(tmp_path / "typo")))
    assert not (tmp_path / "typo").exists()


def test_predict_from_a_file_and_from_standard_input() -> None:
    file = str(PROMPTS / "question-type.safetensors")
    shown = here("predict", file, "--json", "Who wrote this song?", "How many legs does a spider have?")
    assert shown.returncode == 0, shown.stderr
    answers = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [answer["label"] for answer in answers] == ["person", "number"]
    piped = run("predict", file, stdin="Which city hosts the fair?\n\nWhen does the shop close?\n")
    assert "place" in piped.stdout
    assert "time" in piped.stdout


def test_predict_computes_in_the_dtype_that_is_asked_for() -> None:
    """What PEFT's answers are compared with: rounded to bfloat16 they would differ in the third digit."""
    file = PROMPTS / "sentiment.safetensors"
    frozen, prompt = load_backbone("minilm", device="cpu", dtype="float32"), decode_prompt(file.read_bytes())
    rows = frozen.row_encoder(prompt.manifest).encode(["I liked the film."])
    want = max(frozen.score(rows, [frozen.load_prompt(prompt)])[0])

    def score(dtype: str) -> float:
        shown = here("predict", str(file), "--dtype", dtype, "--json", "I liked the film.")
        return float(json.loads(shown.stdout)["score"])

    assert score("float32") == pytest.approx(want, abs=1e-6)
    assert score("bfloat16") != pytest.approx(want, abs=1e-6)
    assert "unknown dtype" in one_line(here("predict", str(file), "--dtype", "int8", "text"))


def test_an_interrupt_before_a_command_begins_is_no_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("promptmux.__main__.build", stopped)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130


def test_a_run_folder_is_its_prompt(tmp_path: Path) -> None:
    source = next(iter(sorted(PROMPTS.glob("*.safetensors"))))
    folder = tmp_path / "run"
    folder.mkdir()
    none = here("predict", str(folder), "text")
    assert one_line(none)
    assert f"no prompt in the folder {folder}" in " ".join(none.stderr.replace("│", " ").split()).replace(
        "- ", "-"
    )
    (folder / "prompt.safetensors").write_bytes(source.read_bytes())
    for named in (source, folder):
        assert "template" in here("inspect", str(named)).stdout
    assert here("inspect", str(folder)).stdout == here("inspect", str(source)).stdout
    store = str(tmp_path / "store")
    assert here("publish", str(folder), "--store", store, "--force").stdout.startswith("published")
    assert (
        here("predict", str(folder), "a good film").stdout
        == here("predict", str(source), "a good film").stdout
    )


def test_text_with_brackets_is_shown_as_it_is() -> None:
    shown = here("predict", str(PROMPTS / "topic.safetensors"), "[bold]the band plays[/bold] tonight")
    assert "[bold]the band plays[/bold]" in shown.stdout


def test_nobody_there_is_one_clear_line() -> None:
    assert "127.0.0.1:9" in one_line(here("tasks", "--server", "http://127.0.0.1:9"))
    assert "127.0.0.1:9" in one_line(here("predict", "sentiment", "x", "--server", "http://127.0.0.1:9"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("column.jsonl", '{"sentence": "a", "label": "x"}\n', "column.jsonl"),
        ("one.jsonl", '{"text": "a b", "label": "x"}\n{"text": "c", "label": "x"}\n', "only the label"),
        ("bytes.jsonl", b'{"text": "\xff\xfe", "label": "x"}\n', "bytes.jsonl"),
    ],
)
def test_training_data_that_cannot_be_learned_from(
    tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    error = one_line(here("train", "--task", "t", "--train", str(file), "--output", str(tmp_path / "run")))
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_settings_that_cannot_work() -> None:
    for command in ("train", "sweep"):  # said before anything is read, not when all is learned
        bad = ("--train", "none.jsonl", "--publish", "store", "--alias", "bad alias!")
        assert "--alias 'bad alias!': not an alias name" in one_line(run(command, "--task", "t", *bad))
    assert "--set" in one_line(run("train", "--task", "t", "--train", "x.jsonl", "--set", "nonsense"))
    assert "promptmux serve" in one_line(
        run("serve", "--host", "0.0.0.0", "--port", "0", "--admin-port", "0")
    )


def test_a_key_is_made_and_its_line_is_added(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours")  # no newline at its end
    made = run("key", "web", "--scope", "infer", "--scope", "admin", "--file", str(file))
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    (key,) = parse_keys(file.read_text().splitlines())
    assert (key.name, key.scopes) == ("web", {"infer", "admin"})
    assert Keyring([key]).authorize(f"Bearer {token}", "admin") == key
    assert token not in file.read_text()
    assert "repeats a name" in one_line(here("key", "web", "--file", str(file)))
    assert "scopes" in one_line(here("key", "web", "--scope", "root"))
    assert here("key", "app").stdout.startswith("key:  pmx_")
