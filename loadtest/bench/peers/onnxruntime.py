"""Worker: ONNX Runtime on the bare backbone. It knows no prompts, so that it does less than ours.

float32 and, as another thing that is not compared, int8; its CPU kernels know no bfloat16.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

from loadtest.bench.peers import worker

_INPUTS, _OUTPUTS = ("input_ids", "attention_mask", "text_mask"), ("pooled", "logits")


def main() -> None:
    """Answer `run` and `features`."""
    out = worker.answers()
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    folder = parser.parse_args().model
    import numpy as np
    import onnxruntime  # type: ignore[import-not-found]

    from loadtest.bench.peers.work import Work, pad

    work = cache(Work.load)
    with tempfile.TemporaryDirectory() as made:

        @cache
        def session(dtype: str, graph: str) -> Any:
            settings = onnxruntime.SessionOptions()
            # Threads may spin within a run, which is fastest, but not while another side has its turn.
            settings.add_session_config_entry("session.force_spinning_stop", "1")
            file = _graph(folder, Path(made), graph, dtype)
            return onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])

        def infer(own: Any, rows: list[Any], output: str) -> Any:
            return own.run([output], dict(zip(_INPUTS, pad(rows), strict=True)))[0]

        def run(file: str, batch: int, sort: bool, dtype: str, graph: str) -> dict[str, Any]:
            own, rows = session(dtype, graph), work(file)
            began = time.perf_counter()
            for members in rows.batches(batch, sort=sort):
                logits = infer(own, [rows.rows[row] for row in members], "logits")
                likely = np.exp(logits - logits.max(axis=-1, keepdims=True))
                (likely / likely.sum(axis=-1, keepdims=True)).tolist()
            return {"seconds": time.perf_counter() - began}

        def features(file: str, rows: int, dtype: str, graph: str, **_: Any) -> dict[str, Any]:
            return {"features": infer(session(dtype, graph), work(file).rows[:rows], "pooled").tolist()}

        worker.serve(
            out,
            worker.versions("onnxruntime", "onnx", "transformers", "torch"),
            {"run": run, "features": features},
        )


def _graph(model: str, made: Path, graph: str, dtype: str) -> str:
    """Return the file of a graph: as torch exports it, or with ONNX Runtime's own fusions for BERT; maybe in int8."""
    file = made / f"{graph}-{dtype}.onnx"
    if file.exists():
        return str(file)
    if dtype == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-not-found]

        quantize_dynamic(
            _graph(model, made, graph, "float32"),
            file,
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": 1},  # ONNX's number of float32, for what fusions made untyped
        )
    elif graph == "fused":
        from onnxruntime.transformers.optimizer import optimize_model  # type: ignore[import-not-found]

        config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
        # The fusion of attention happens only where heads and width are given.
        fused = optimize_model(
            _graph(model, made, "exported", dtype),
            model_type="bert",
            num_heads=config["num_attention_heads"],
            hidden_size=config["hidden_size"],
        )
        if not any(node.op_type == "Attention" for node in fused.model.graph.node):
            raise RuntimeError("ONNX Runtime's optimizer found no attention to fuse")
        fused.save_model_to_file(str(file))
    else:
        import torch

        from loadtest.bench.peers.padded import Padded

        example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in _INPUTS)
        # The exporter by tracing and attention in plain operators: what ONNX Runtime's fusions know.
        torch.onnx.export(
            Padded(model, attention="eager"),
            example,
            file,
            input_names=list(_INPUTS),
            output_names=list(_OUTPUTS),
            dynamic_axes={name: {0: "rows", 1: "places"} for name in _INPUTS},
            dynamo=False,
        )
    return str(file)


if __name__ == "__main__":
    main()
