"""States are never in half precision."""

import contextlib

import torch
from torch import Tensor, nn


class FullPrecision(nn.Module):
    """A `state_fn` whose operators take the dtype they are given, also under autocast: subclasses have `_fuse`."""

    def forward(self, h: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self._fuse(h)
        else:
            kind = h.device.type
            known = torch.amp.is_autocast_available(kind)
            with torch.autocast(kind, enabled=False) if known else contextlib.nullcontext():
                return self._fuse(h)

    def _fuse(self, h: Tensor) -> Tensor:
        raise NotImplementedError
