"""Which floating-point format a step computes in.

Weights, moments and reductions stay in fp32; only the forward and backward of the objective run in bf16. On a CPU
`auto` is fp32 even where it has bf16 instructions, so that runs on CPUs agree bit for bit.
"""

import torch


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context that a forward pass runs in."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(precision, device))


def uses_bf16(precision: str, device: torch.device) -> bool:
    """True if the forward pass runs in bf16 on this device."""
    return precision == "bf16" or (precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())
