"""From the name of a device to one that is there."""

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


def accelerator_device(name: str) -> torch.device:
    """From `trainer.accelerator`, in Lightning's words. Raises ValueError when there is none here."""
    present = torch.accelerator.current_accelerator(check_available=True)
    if name == "cpu" or (name == "auto" and present is None):
        return torch.device("cpu")
    if present is None or (name not in ("auto", "gpu") and name != present.type):
        found = "none" if present is None else present.type
        raise ValueError(f"trainer.accelerator is {name}, but torch finds {found} here; choose cpu or auto")
    return present
