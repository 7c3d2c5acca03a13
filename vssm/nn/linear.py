"""Linear layers that finish their result in one pass."""

from timm.models._features_fx import register_notrace_module
from torch import Tensor, nn

from vssm.ops import linear


class Linear(nn.Linear):
    """`torch.nn.Linear` computed by `vssm.ops.linear`: (..., C) -> (..., C'), plus a residual (..., C') if given."""

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return linear(input, self.weight, self.bias, "none", residual)


register_notrace_module(Linear)
