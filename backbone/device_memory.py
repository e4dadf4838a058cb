"""How much of a GPU's memory is in use.

Owns: what torch is asked for that. Must not know: what lies in it.
"""

from __future__ import annotations

import torch


def device_memory(device: torch.device) -> dict[str, int]:
    """Bytes of a GPU: `allocated` to tensors, `reserved` by torch for them, `total`. Empty for a CPU, whose memory is
    the process's. May be called from any thread.
    """
    if device.type != "cuda":
        return {}
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "total": torch.cuda.get_device_properties(device).total_memory,
    }
