"""From --device to a torch device that is there."""

import torch


def pick_device(name: str) -> torch.device:
    """`auto`: the first accelerator, else the CPU. Raises ValueError for a device that torch does not have here."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        present = f"cpu, {accelerator}" if accelerator else "cpu"
        raise ValueError(f"device {name!r} is not available here; available: {present}") from error
    return device
