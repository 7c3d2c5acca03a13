"""Root mean square normalisation on the compiled core: its layer norm without centring."""

from torch import Tensor

from vssm.ops.layer_norm import core


def forward(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """See the public function."""
    return core.forward(x, weight, None, None, eps, centred=False)


def backward(gy: Tensor, x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor | None, ...]:
    """dx, dweight; dweight None without a weight."""
    return core.backward(gy, x, weight, None, None, eps, centred=False)[:2]
