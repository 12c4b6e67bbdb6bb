"""The peak memory of this process: of the GPU where it has one, else resident memory (Linux)."""

import re
from pathlib import Path


def reset(device: str) -> None:
    """Reset the peak."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)


def peak(device: str) -> dict[str, float | None]:
    """`peak_memory_mb` (tensors at once) and `reserved_memory_mb` (what torch took from the GPU for them)."""
    if device.startswith("cuda"):
        import torch

        allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        return {"peak_memory_mb": allocated / 2**20, "reserved_memory_mb": reserved / 2**20}
    status = Path("/proc/self/status").read_text()
    match = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return {"peak_memory_mb": int(match[1]) / 1024 if match else None, "reserved_memory_mb": None}
