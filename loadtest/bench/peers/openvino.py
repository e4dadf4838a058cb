"""Worker: OpenVINO on the bare backbone. It knows no prompts, so that it does less than ours."""

from __future__ import annotations

import argparse
import time
from functools import cache
from typing import Any

from loadtest.bench.peers import worker

_PRECISION = {"float32": "f32", "bfloat16": "bf16"}


def main() -> None:
    """Answer `run` and `features`."""
    out = worker.answers()
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    folder = parser.parse_args().model
    import numpy as np
    import openvino  # type: ignore[import-not-found]
    import torch

    from loadtest.bench.peers.padded import Padded
    from loadtest.bench.peers.work import Work, pad

    work = cache(Work.load)
    core = openvino.Core()
    example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in range(3))
    graph = openvino.convert_model(Padded(folder), example_input=example)
    graph.reshape({place: openvino.PartialShape([-1, -1]) for place in graph.inputs})

    @cache
    def compiled(dtype: str, hint: str) -> Any:
        settings = {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": _PRECISION[dtype]}
        return core.compile_model(graph, "CPU", settings)

    @cache
    def requests(dtype: str, hint: str) -> Any:
        """As many requests at a time as OpenVINO itself finds best for the hint."""
        return openvino.AsyncInferQueue(compiled(dtype, hint))

    def run(file: str, batch: int, sort: bool, dtype: str, hint: str) -> dict[str, Any]:
        rows, queue = work(file), requests(dtype, hint)
        scores: dict[int, list[list[float]]] = {}

        def keep(request: Any, nth: int) -> None:
            logits = request.get_output_tensor(1).data
            likely = np.exp(logits - logits.max(axis=-1, keepdims=True))
            scores[nth] = (likely / likely.sum(axis=-1, keepdims=True)).tolist()

        queue.set_callback(keep)
        began = time.perf_counter()
        for nth, members in enumerate(rows.batches(batch, sort=sort)):
            queue.start_async(list(pad([rows.rows[row] for row in members])), nth)
        queue.wait_all()
        took = time.perf_counter() - began
        assert sum(map(len, scores.values())) == len(rows.rows)
        return {"seconds": took}

    def features(file: str, rows: int, dtype: str, hint: str, **_: Any) -> dict[str, Any]:
        request = compiled(dtype, hint).create_infer_request()
        request.infer(list(pad(work(file).rows[:rows])))
        return {"features": request.get_output_tensor(0).data.tolist()}

    worker.serve(
        out, worker.versions("openvino", "transformers", "torch"), {"run": run, "features": features}
    )


if __name__ == "__main__":
    main()
