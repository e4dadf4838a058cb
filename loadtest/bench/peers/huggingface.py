"""Worker: transformers on padded batches, as its users run it, without prompts or with one soft prompt.

Eager, or under `torch.compile` with shapes that may change.
"""

from __future__ import annotations

import argparse
import time
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
    import torch
    from torch import Tensor

    from loadtest.bench.peers.padded import Padded
    from loadtest.bench.peers.work import Work, pad

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    work = cache(Work.load)

    @cache
    def model(dtype: str) -> Padded:
        return Padded(folder, getattr(torch, dtype)).to(device)

    @cache
    def compiled(dtype: str) -> Any:
        return torch.compile(model(dtype), dynamic=True)

    @cache
    def soft_prompt(file: str, dtype: str) -> Tensor:
        return torch.from_numpy(np.load(file)["soft"][0]).to(device, getattr(torch, dtype))

    def scores(dtype: str, engine: str, rows: list[Any], soft: Tensor | None) -> tuple[Tensor, Tensor]:
        ids, attended, text = (torch.from_numpy(array).to(device) for array in pad(rows))
        own = model(dtype)
        if soft is None:
            pooled, logits = (own if engine == "eager" else compiled(dtype))(ids, attended, text)
            return pooled, logits
        embedded = own.base.get_input_embeddings()(ids)
        embedded = torch.cat([soft.expand(len(rows), -1, -1), embedded], dim=1)
        lead = torch.ones(len(rows), len(soft), dtype=attended.dtype, device=device)
        hidden = own.base(
            inputs_embeds=embedded, attention_mask=torch.cat([lead, attended], dim=1)
        ).last_hidden_state
        return own.scores(hidden[:, len(soft) :], text)

    @torch.inference_mode()
    def run(
        file: str, batch: int, sort: bool, dtype: str, engine: str = "eager", prompts: str | None = None
    ) -> dict[str, Any]:
        soft, rows = soft_prompt(prompts, dtype) if prompts else None, work(file)
        began = time.perf_counter()
        for members in rows.batches(batch, sort=sort):
            _, logits = scores(dtype, engine, [rows.rows[row] for row in members], soft)
            logits.float().softmax(-1).tolist()
        return {"seconds": time.perf_counter() - began}

    @torch.inference_mode()
    def features(
        file: str, rows: int, dtype: str, engine: str = "eager", prompts: str | None = None, **_: Any
    ) -> dict[str, Any]:
        soft = soft_prompt(prompts, dtype) if prompts else None
        pooled, _logits = scores(dtype, engine, work(file).rows[:rows], soft)
        return {"features": pooled.float().tolist()}

    worker.serve(out, worker.versions("transformers", "torch"), {"run": run, "features": features})


if __name__ == "__main__":
    main()
