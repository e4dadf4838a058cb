"""Write a folder's sequence classifier as model.onnx beside its weights; run by the infinity peer's own Python.

`python -m loadtest.bench.peers.infinity_onnx FOLDER`. infinity-emb's ONNX engine optimises the file itself when it
starts, but wants it to be there, and the optimum that goes with it cannot export under a torch of today.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def export(folder: Path) -> None:
    """Trace the classifier with any number of rows of any length."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    rows = AutoTokenizer.from_pretrained(folder)(["one", "one two three"], return_tensors="pt", padding=True)
    axes = {name: {0: "rows", 1: "tokens"} for name in INPUTS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            tuple(rows[name] for name in INPUTS),
            str(folder / "model.onnx"),
            input_names=list(INPUTS),
            output_names=["logits"],
            dynamic_axes={**axes, "logits": {0: "rows"}},
            opset_version=17,
            dynamo=False,  # the new exporter needs onnxscript, and ONNX Runtime's fusions know this form
        )


if __name__ == "__main__":
    export(Path(sys.argv[1]))
