"""Layer normalisation over the channels of NHWC maps."""

from timm.models._features_fx import register_notrace_module
from torch import Tensor, nn

from vssm.ops import layer_norm


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` over the last dim, computed by `vssm.ops.layer_norm`.

    x (..., dim) -> (..., dim); with a gate of the same shape, the result times silu(gate), in the same pass.
    """

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps, gate)


register_notrace_module(LayerNorm)
