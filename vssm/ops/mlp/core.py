"""The MLP in row chunks on the CPU: the hidden activations live and die in the cache.

Written whole, the hidden tensor of VMamba-T's first stage is 38 MB at B=8: it is paged in, written to memory, read
back for the activation, written and read again. Here a chunk of rows goes through both products before the next one
begins. The backward recomputes the hidden chunk from x, one more product in seven, and so keeps nothing of its size.
"""

import torch
from torch import Tensor

from vssm.ops.linear import bias_act
from vssm.ops.linear import core as linear

# Elements of one hidden chunk: 1 MB in float32, half of a usual L2. At least MIN_ROWS rows, or the weights, which
# are read once per chunk, dominate.
CHUNK_ELEMENTS = 1 << 18
MIN_ROWS = 256

# Training below this size of the hidden tensor keeps it: the recomputed product would cost more than the memory
# traffic it saves. At B=8 the first two stages of VMamba-T, 38 and 19 MB, are above it. With 0 or a large number here,
# `python benchmarks/pointwise.py --part mlp --batch 8` shows both sides of the choice.
RECOMPUTE_BYTES = 16 << 20


def chunks(rows: int, hidden: int) -> list[slice]:
    """Row ranges of about equal length, by shape alone."""
    count = max(1, -(-rows // max(MIN_ROWS, CHUNK_ELEMENTS // hidden)))
    step = -(-rows // count)
    return [slice(i, min(i + step, rows)) for i in range(0, rows, step)]


def forward(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, residual: Tensor | None
) -> Tensor:
    """See the public function; one dtype throughout."""
    parts = chunks(x.numel() // x.shape[-1], weight1.shape[0])
    own = linear.is_ahead(x, weight1, weight2, bias1, bias2, residual)
    if own and len(parts) == 1:
        return _few_rows(x, weight1, bias1, weight2, bias2, residual)
    rows = x.reshape(-1, x.shape[-1])
    y = x.new_empty(rows.shape[0], weight2.shape[0])
    buffer = x.new_empty(parts[0].stop, weight1.shape[0])
    base = None if residual is None else residual.reshape(y.shape)
    if own:
        packed1, packed2 = linear.pack(weight1), linear.pack(weight2)
        for part in parts:
            hidden = buffer[: part.stop - part.start]
            linear.forward(rows[part], weight1, bias1, None, "gelu", hidden, packed1)
            linear.forward(hidden, weight2, bias2, None if base is None else base[part], "none", y[part], packed2)
        return y.view(*x.shape[:-1], -1)
    w1, w2 = weight1.t(), weight2.t()
    for part in parts:
        hidden = torch.mm(rows[part], w1, out=buffer[: part.stop - part.start])
        bias_act.forward(hidden, bias1, "gelu", out=hidden)
        if base is None:
            # Not addmm: it writes the bias over all of y first and has the product read it back.
            out = torch.mm(hidden, w2, out=y[part])
            bias_act.forward(out, bias2, "none", out=out)
        else:  # the pass that would copy the bias adds the residual
            torch.add(base[part], bias2, out=y[part]).addmm_(hidden, w2)
    return y.view(*x.shape[:-1], -1)


def _few_rows(x, weight1, bias1, weight2, bias2, residual) -> Tensor:
    """Both products at once; with few rows the hidden ones are written as columns, as the second product wants them."""
    rows, hidden = x.numel() // x.shape[-1], weight1.shape[0]
    if rows >= linear.FEW_ROWS or rows == 1:
        return linear.forward(linear.forward(x, weight1, bias1, None, "gelu"), weight2, bias2, residual, "none")
    columns = x.new_empty(hidden, -(-rows // 16) * 16)[:, :rows].t()
    linear.forward(x, weight1, bias1, None, "gelu", out=columns)
    y = x.new_empty((*x.shape[:-1], weight2.shape[0]))
    return linear.forward(columns, weight2, bias2, residual, "none", out=y)


def backward(
    gy: Tensor, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, d weight1, d bias1, d weight2, d bias2."""
    rows, g = x.reshape(-1, x.shape[-1]), gy.reshape(-1, gy.shape[-1])
    dx = torch.empty_like(rows)
    dw1, db1, dw2 = torch.zeros_like(weight1), torch.zeros_like(bias1), torch.zeros_like(weight2)
    parts = chunks(len(rows), weight1.shape[0])
    buffers = x.new_empty(3, parts[0].stop, weight1.shape[0])
    w1 = weight1.t()
    for part in parts:
        pre, act, ghidden = buffers[:, : part.stop - part.start]
        torch.mm(rows[part], w1, out=pre)
        bias_act.forward(pre, bias1, "gelu", out=act)
        dw2.addmm_(g[part].t(), act)
        torch.mm(g[part], weight2, out=ghidden)
        _, db = bias_act.backward(ghidden, pre, bias1, "gelu", out=ghidden)
        assert db is not None
        db1 += db
        dw1.addmm_(ghidden.t(), rows[part])
        torch.mm(ghidden, weight1, out=dx[part])
    return dx.view_as(x), dw1, db1, dw2, g.sum(0)
