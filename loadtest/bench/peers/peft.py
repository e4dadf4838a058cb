"""Worker: PEFT, which has one adapter active at a time, so that the rows of a batch are grouped by their task.

Each task has an adapter of its own (prompt tuning, or a prefix in every layer) and a linear head of its own on the
mean over its text tokens.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from functools import cache
from typing import Any

from loadtest.bench.peers import worker


def main() -> None:
    """Answer `run` and `features`."""
    out = worker.answers()
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    folder = parser.parse_args().model
    import numpy as np
    import peft
    import torch
    from torch import Tensor

    from loadtest.bench.peers.padded import Padded, mean
    from loadtest.bench.peers.work import Work, pad

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    work = cache(Work.load)

    @cache
    def model(kind: str, prompts: str, dtype: str) -> tuple[Any, list[Tensor], list[Tensor]]:
        """Return the model with an adapter for each task, and the tasks' heads."""
        with np.load(prompts) as file:
            parts = {name: torch.from_numpy(file[name]) for name in file.files}
        values = parts[kind]  # [tasks, virtual tokens, …]
        prefix = kind == "prefix"
        config = (peft.PrefixTuningConfig if prefix else peft.PromptTuningConfig)(
            task_type="FEATURE_EXTRACTION", num_virtual_tokens=values.shape[1], inference_mode=True
        )
        wrapped: Any = peft.get_peft_model(Padded(folder).base, config, adapter_name="0")
        for task in range(1, len(values)):
            wrapped.add_adapter(str(task), config)
        for task, value in enumerate(values):
            weight = wrapped.prompt_encoder[str(task)].embedding.weight
            weight.data.copy_(value.reshape(weight.shape))
        to = getattr(torch, dtype)
        wrapped = wrapped.to(device, to).eval().requires_grad_(False)
        heads = [list(parts[name].to(device, to)) for name in ("weight", "bias")]
        return wrapped, heads[0], heads[1]

    def pooled(wrapped: Any, kind: str, task: int, rows: list[Any]) -> Tensor:
        wrapped.set_adapter(str(task), inference_mode=True)
        ids, attended, text = (torch.from_numpy(array).to(device) for array in pad(rows))
        hidden = wrapped(input_ids=ids, attention_mask=attended).last_hidden_state
        return mean(hidden[:, -ids.shape[1] :], text)  # behind the virtual tokens, where there are any

    def groups(rows: Work, members: list[int]) -> dict[int, list[int]]:
        grouped: dict[int, list[int]] = defaultdict(list)
        for row in members:
            grouped[int(rows.tasks[row])].append(row)
        return grouped

    @torch.inference_mode()
    def run(file: str, batch: int, kind: str, prompts: str, dtype: str) -> dict[str, Any]:
        (wrapped, weights, biases), rows = model(kind, prompts, dtype), work(file)
        began = time.perf_counter()
        count = 0
        for members in rows.batches(batch, sort=False):
            for task, own in groups(rows, members).items():
                states = pooled(wrapped, kind, task, [rows.rows[row] for row in own])
                torch.nn.functional.linear(states, weights[task], biases[task]).float().softmax(-1).tolist()
                count += 1
        return {"seconds": time.perf_counter() - began, "groups": count}

    @torch.inference_mode()
    def features(file: str, rows: int, kind: str, prompts: str, dtype: str, **_: Any) -> dict[str, Any]:
        wrapped, (some, members) = model(kind, prompts, dtype)[0], (work(file), list(range(rows)))
        found: dict[int, list[float]] = {}
        for task, own in groups(some, members).items():
            states = pooled(wrapped, kind, task, [some.rows[row] for row in own])
            found |= dict(zip(own, states.float().tolist(), strict=True))
        return {"features": [found[row] for row in members]}

    worker.serve(out, worker.versions("peft", "transformers", "torch"), {"run": run, "features": features})


if __name__ == "__main__":
    main()
