"""Running a batch through a stage a few samples at a time, where that keeps the maps in the cache.

Nothing in a stage mixes samples outside of training, so the order is free. A CPU that takes the whole batch through
every layer writes each map to memory and reads it back; taken depth first, the maps of a few samples stay in the L2
cache.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from vssm.nn.watch import any_watched

# Bytes of a stage's input that run together, per thread: between one and two L2 caches of 2 MB.
WORKING_SET = 5 << 19


def depth_first(module: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor, growth: int = 1) -> Tensor:
    """run(x), where `run` goes through the layers of `module`, which mix no samples in eval mode.

    Takes a few samples of x (B, ...) at a time where nobody can tell: no gradient, no tracing, no hook that would see
    a part of the batch. `growth`: how many times larger than x the widest maps inside are.
    """
    if isinstance(x, Proxy) or x.shape[0] == 1 or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return run(x)
    if module.training or x.device.type != "cpu" or torch.jit.is_tracing() or any_watched(module):
        return run(x)
    sample = x[0].numel() * x.element_size() * growth
    together = max(1, WORKING_SET * torch.get_num_threads() // sample)
    if together >= x.shape[0]:
        return run(x)
    y = None
    for first, part in zip(range(0, x.shape[0], together), x.split(together), strict=True):
        out = run(part)
        if y is None:
            y = out.new_empty((x.shape[0], *out.shape[1:]))
        y[first : first + together] = out  # at once, while it is in the cache
    assert y is not None
    return y
