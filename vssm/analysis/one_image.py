"""The multiply-adds of one image, or why they cannot be counted."""

from torch import nn

from vssm.analysis.complexity import complexity


def multiply_adds(model: nn.Module, size: tuple[int, int, int]) -> tuple[int | None, str]:
    """Those of one image of `size` (C, H, W), or None and the reason.

    Counted on fake tensors; some models of timm's many look at values, which those do not have.
    """
    try:
        return complexity(model, size).macs, ""
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return None, " ".join(str(error).split())[:80] or type(error).__name__
