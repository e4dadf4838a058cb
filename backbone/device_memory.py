"""How much of a GPU's memory is in use.

Owns: what torch is asked for that. Must not know: what lies in it.
"""

from __future__ import annotations

import torch


def device_memory(device: torch.device) -> dict[str, int]:
    """Bytes of a GPU: `allocated` to our tensors, `reserved` by torch for them, `free` of all processes, `total`. Empty
    for a CPU, whose memory is the process's. May be called from any thread. RuntimeError where the GPU has failed.
    """
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "free": free,
        "total": total,
    }
