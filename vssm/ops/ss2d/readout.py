"""The declaration of `vssm::ss2d_readout`, y = sum_kn C_kn h_kn + skip x."""

import torch
from torch import Tensor

from vssm.ops.operator import Operator
from vssm.ops.ss2d import readout_core
from vssm.ops.tensors import MAP, STATES


def plain(h: Tensor, C: Tensor, x: Tensor | None, skip: Tensor | None) -> Tensor:
    """The equation. h (B, K, E, N, H, W), C (B, K, N, H, W), x (B, E, H, W) and skip (E,): both or neither."""
    # State by state in the layout that `ss2d_states` writes, (B, K, N, H, W, E): one sum over both dimensions goes
    # across the memory. Unbound, not flattened: exporting with free H and W would guard on what a view needs to know.
    maps = [h_kn for h_k in h.unbind(1) for h_kn in h_k.unbind(2)]
    weights = [C_kn.unsqueeze(1) for C_k in C.unbind(1) for C_kn in C_k.unbind(1)]
    y = maps[0] * weights[0]
    for h_kn, C_kn in zip(maps[1:], weights[1:]):
        y = torch.addcmul(y, h_kn, C_kn)
    return y if skip is None or x is None else torch.addcmul(y, x, skip[:, None, None])


def portable(h: Tensor, C: Tensor, x: Tensor | None, skip: Tensor | None) -> Tensor:
    """The same on NHWC maps, and without addcmul, which exports as one product more."""
    y = None
    for h_k, C_k in zip(h.unbind(1), C.unbind(1), strict=True):
        for h_kn, C_kn in zip(h_k.unbind(2), C_k.unbind(1), strict=True):
            part = h_kn.permute(0, 2, 3, 1) * C_kn.unsqueeze(-1)
            y = part if y is None else y + part
    assert y is not None
    if skip is not None and x is not None:
        y = y + x.permute(0, 2, 3, 1) * skip
    return y.permute(0, 3, 1, 2)


READOUT = Operator(
    "ss2d_readout(Tensor h, Tensor C, Tensor? x, Tensor? skip) -> Tensor",
    shape=lambda h, *_: (h.shape[0], h.shape[2], *h.shape[4:]),
    reference=plain,
    portable=portable,
    plain=plain,
    core=readout_core,
    triton="vssm.ops.ss2d.triton_readout",
    result="first",
    order=MAP,
    gradient_orders={"h": STATES, "x": MAP},
    macs=lambda *_: {},  # an element-wise product and a sum
    inlines="compile",
)
