"""infinity-emb as a server to compare with: the same backbone with one fixed linear head, in every form it offers.

Owns the checkpoint that infinity serves, the forms it is run in, and its command line. Its pins are in
`peers/infinity.txt`. Knows nothing of load.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from backbone.loader import quiet
from loadtest.bench.options import ROOT
from loadtest.bench.peer_process import PeerUnavailable, environment
from loadtest.ports import free_port
from loadtest.server_process import NotStarted, Process, process, wait_for

SERVED_AS = "head"
AS_IT_COMES = "infinity float32 (as it comes)"
# Every form that it offers for a classifier without changing its answers; int8 would.
FORMS: dict[str, tuple[str, ...]] = {
    AS_IT_COMES: ("--engine", "torch"),
    "infinity bfloat16": ("--engine", "torch", "--dtype", "bfloat16"),
    "infinity bfloat16, compiled": (
        "--engine", "torch", "--dtype", "bfloat16", "--compile", "--no-bettertransformer",
    ),
    # Its warm-up sends texts longer than the model takes, and this engine does not cut; the bench's first round warms.
    "infinity ONNX, optimised": ("--engine", "optimum", "--no-model-warmup"),
}  # fmt: skip
MOST_APART = 0.03  # of a probability; bfloat16 is about a tenth of this away from float32
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
_QUIETLY = {
    "HF_HUB_OFFLINE": "1",  # all that it needs is in the folder
    "DO_NOT_TRACK": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "PYTHONWARNINGS": "ignore",
}


@dataclass(frozen=True)
class Running:
    """An infinity server that answers."""

    url: str
    process: Process


def write_checkpoint(backbone: Path, folder: Path) -> None:
    """The backbone as a two-label classifier with a random, fixed head, as a checkpoint of its own.

    The configuration and the tokenizer's files are the backbone's own: what transformers writes today, infinity's older
    one cannot read.
    """
    from safetensors.torch import save_file
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    with quiet():
        model = BertForSequenceClassification.from_pretrained(backbone, num_labels=2, dtype=torch.float32)
    with torch.no_grad():
        model.classifier.weight.normal_(std=0.2)  # as transformers makes it, every text would come out at 0.5
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((backbone / "config.json").read_text(encoding="utf-8"))
    # Without at least two names for labels infinity takes a classifier for a reranker.
    config |= {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {"0": "no", "1": "yes"},
        "label2id": {"no": 0, "yes": 1},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    for name in _TOKENIZER_FILES:
        if (backbone / name).is_file():
            shutil.copyfile(backbone / name, folder / name)


def disagreement(form: Running, folder: Path, texts: Sequence[str]) -> float:
    """How far a form's scores are from those of the same checkpoint in stock transformers, at most.

    Raises PeerUnavailable if it does not answer.
    """
    from transformers import AutoTokenizer, BertForSequenceClassification

    body = json.dumps({"model": SERVED_AS, "input": list(texts)}).encode()
    asked = urllib.request.Request(
        f"{form.url}/classify", data=body, headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=300) as answer:  # it may compile first
            given = [{one["label"]: one["score"] for one in row} for row in json.load(answer)["data"]]
    except OSError as error:
        raise PeerUnavailable(f"no answer: {error}") from None
    with quiet():
        model: Any = BertForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
        tokens = AutoTokenizer.from_pretrained(folder)(list(texts), return_tensors="pt", padding=True)
    with torch.inference_mode():
        wanted = model.eval()(**tokens).logits.softmax(-1)[:, 1].tolist()
    return max(abs(float(row["yes"]) - float(yes)) for row, yes in zip(given, wanted, strict=True))


@contextlib.contextmanager
def checkpoints(backbone: Path, console: Console) -> Iterator[dict[str, Path]]:
    """A folder for each form, until the block ends. Raises PeerUnavailable."""
    python = environment("infinity", console)
    with tempfile.TemporaryDirectory() as place:
        plain, onnx = Path(place) / "plain", Path(place) / "onnx"
        write_checkpoint(backbone, plain)
        # A folder of its own: the engine writes its optimised model there.
        shutil.copytree(plain, onnx)
        ran = subprocess.run(
            [str(python), "-m", "loadtest.bench.peers.infinity_onnx", str(onnx)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode:
            console.print(f"infinity: no ONNX form: {ran.stderr.strip().splitlines()[-1:]}")
        yield {
            name: onnx if "optimum" in flags else plain
            for name, flags in FORMS.items()
            if "optimum" not in flags or not ran.returncode
        }


@contextlib.contextmanager
def running(form: str, folder: Path, console: Console, *, warm_up: bool = True) -> Iterator[Running]:
    """Serve a checkpoint in one of the forms until the block ends. Raises PeerUnavailable."""
    port = free_port()
    command = [
        str(environment("infinity", console).parent / "infinity_emb"),
        *("v2", "--model-id", str(folder), "--served-model-name", SERVED_AS),
        *("--host", "127.0.0.1", "--port", str(port), "--device", "cpu"),
        *("--log-level", "error"),  # a line for each request would only slow it down
        *FORMS[form],
        *(() if warm_up or "--no-model-warmup" in FORMS[form] else ("--no-model-warmup",)),
    ]
    url = f"http://127.0.0.1:{port}"
    with process(command, _QUIETLY) as started:
        try:
            wait_for(started, f"{url}/health", patience=300.0)
        except NotStarted as error:
            raise PeerUnavailable(f"{form}: {_last_line(str(error))}") from None
        yield Running(url, started)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][-300:]
