"""Root mean square normalisation on Triton: its layer norm without centring."""

from torch import Tensor

from vssm.ops.layer_norm import triton


def forward(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """See the public function."""
    return triton.forward(x, weight, None, None, eps, centred=False)


def backward(gy: Tensor, x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor | None, ...]:
    """dx, dweight; dweight None without a weight."""
    return triton.backward(gy, x, weight, None, None, eps, centred=False)[:2]
