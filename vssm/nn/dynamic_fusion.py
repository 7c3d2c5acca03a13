"""Dynamic convolution of states (Chen et al. 2020, arXiv 1912.03458) as a `state_fn`: Spatial-Mamba, table 4."""

# Tensor.unflatten and Tensor.split have no annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssm.nn.choices import check_choice
from vssm.nn.precision import FullPrecision, StateConv1x1
from vssm.nn.shortcut import Shortcut
from vssm.nn.state_fusion import StateFusion
from vssm.nn.states import as_map, as_states, mean_state

__all__ = ["MIXES", "DynamicConv", "DynamicFusion"]

MIXES = ("kernels", "outputs")


class DynamicConv(Shortcut):
    """A depthwise convolution whose kernels are a mixture of experts, chosen by the map itself.

        y = (sum_e pi_e K_e) * h,    pi = softmax(W2 relu(W1 mean(h)) / temperature),    replicate border

    h (B, K, C, N, H, W) -> the same. Each of the K routes has its own attention; the N states of a channel share its
    kernels. Arguments as in `DynamicFusion`.
    """

    def __init__(
        self,
        dim: int,
        routes: int,
        kernel_size: int,
        dilation: int,
        experts: int,
        reduction: int,
        temperature: float,
        mix: str,
    ):
        super().__init__()
        self.routes, self.experts, self.dilation = routes, experts, dilation
        self.mix_outputs = mix == "outputs"
        hidden = max(1, dim // reduction)
        self.fc1 = StateConv1x1(routes * dim, routes * hidden, routes, bias=False)
        self.fc2 = StateConv1x1(routes * hidden, routes * experts, routes)
        self.kernels = nn.Parameter(torch.empty(experts, routes, dim, kernel_size, kernel_size))
        nn.init.normal_(self.kernels, std=2**0.5 / kernel_size)  # Kaiming's, of a depthwise kernel
        # Saved with the weights: annealing it changes the function.
        self.register_buffer("temperature", torch.tensor(float(temperature)))
        self.temperature: Tensor

    def attention(self, h: Tensor) -> Tensor:
        """pi (B, K, experts)."""
        mean = mean_state(h).mean([2, 3], keepdim=True)
        logits = self.fc2(F.relu(self.fc1(mean)))
        return (logits.flatten(1).unflatten(1, [self.routes, self.experts]) / self.temperature.to(h.dtype)).softmax(2)

    def forward(self, h: Tensor, values: Tensor | None = None) -> Tensor:
        """The kernels that h chooses, on h, or on `values` of the same shape."""
        routes, channels, states = h.shape[1], h.shape[2], h.shape[3]
        pi, kernels, size = self.attention(h), self.kernels.to(h.dtype), self.kernels.shape[-1]
        pad = self.dilation * (size // 2)
        x = F.pad(as_map(h if values is None else values), [pad, pad, pad, pad], mode="replicate")
        if self.mix_outputs:
            # The experts of a channel side by side, as the groups of a convolution want them.
            weight = kernels.permute(1, 2, 0, 3, 4)[:, :, None].expand(-1, -1, states, -1, -1, -1)
            groups = routes * channels * states
            y = F.conv2d(x, weight.reshape(-1, 1, size, size), dilation=self.dilation, groups=groups)
            y = y.unflatten(1, [routes, channels * states, self.experts])
            y = (y * pi[:, :, None, :, None, None]).sum(3).flatten(1, 2)
        else:
            weight = torch.einsum("bke,kecyx->bkcyx", pi, kernels.transpose(0, 1))
            weight = weight[:, :, :, None].expand(-1, -1, -1, states, -1, -1).reshape(-1, 1, size, size)
            y = self._own_kernels(x, weight)
        return as_states(y, h)

    def _own_kernels(self, x: Tensor, weight: Tensor) -> Tensor:
        """x (B, G, H, W) convolved, each sample with its own G of the kernels (B*G, 1, size, size)."""
        batch, groups = x.shape[0], x.shape[1]
        if self.shortcuts and self._one_by_one(x):
            samples = zip(x.split(1), weight.split(groups))
            return torch.cat([F.conv2d(one, own, dilation=self.dilation, groups=groups) for one, own in samples])
        # Samples become channels.
        y = F.conv2d(x.contiguous().flatten(0, 1).unsqueeze(0), weight, dilation=self.dilation, groups=batch * groups)
        return y.squeeze(0).unflatten(0, [batch, groups])

    @torch.jit.unused
    def _one_by_one(self, x: Tensor) -> bool:
        """In inference on the CPU a loop over the samples is faster: nothing is laid out anew."""
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        return x.device.type == "cpu" and not torch.is_grad_enabled() and not traced


class DynamicFusion(FullPrecision):
    """A static fusion of states plus dynamic convolutions of them, one for each dilation.

    h (B, K, C, N, H, W) -> the same shape and dtype. Spatial-Mamba (arXiv 2410.15091, table 4) prints 33 M parameters
    and 4.8 G multiply-adds for its tiny model with dynamic convolution, and no design. Two explain both numbers: one
    11 x 11 kernel beside the static fusion, the default, and three dilated 3 x 3 ones whose outputs are mixed,
    `kernel_size=3, dilations=(1, 3, 5), mix="outputs"`.

    Args:
        dim: channels C of the mixer.
        routes: K.
        d_state: N.
        kernel_size, dilations: of the dynamic convolutions; an odd size.
        experts, reduction, temperature: kernels to mix, width of the attention C / reduction, softness of its softmax.
            30 is where Chen et al. begin; annealing it to 1 is for the training to do.
        mix: "kernels": convolve once with the mixed kernel; "outputs": convolve with every expert and mix what comes
            out. The same function at another cost.
        static_dilations: of the `StateFusion` beside them; () for none.

    At the start experts are normal with Kaiming's deviation, the static fusion is that of `StateFusion`.
    """

    def __init__(
        self,
        dim: int,
        routes: int = 1,
        d_state: int = 1,
        kernel_size: int = 11,
        dilations: Sequence[int] = (1,),
        experts: int = 4,
        reduction: int = 4,
        temperature: float = 30.0,
        mix: str = "kernels",
        static_dilations: Sequence[int] = (1, 3, 5),
    ):
        super().__init__()
        check_choice("mix", mix, MIXES)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
        if len(dilations) == 0 or any(d < 1 for d in dilations):
            raise ValueError(f"dilations must be positive and at least one, got {tuple(dilations)}")
        if experts < 1 or reduction < 1 or temperature <= 0:
            raise ValueError(
                f"experts and reduction must be at least 1 and temperature positive, got {experts}, {reduction} and "
                f"{temperature}"
            )
        self.static = StateFusion(dim, routes, d_state, static_dilations) if len(static_dilations) > 0 else None
        self.dynamic = nn.ModuleList(
            DynamicConv(dim, routes, kernel_size, dilation, experts, reduction, temperature, mix)
            for dilation in dilations
        )

    def set_temperature(self, temperature: float) -> None:
        """Of all attentions; Chen et al. go from 30 to 1 over their first ten epochs."""
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        for module in self.dynamic:
            assert isinstance(module, DynamicConv)
            module.temperature.fill_(temperature)

    def get_temperature(self) -> float:
        """The highest of all attentions."""
        return max(float(module.temperature) for module in self.dynamic if isinstance(module, DynamicConv))

    def _fuse(self, h: Tensor, values: Tensor | None = None) -> Tensor:
        read = h if values is None else values
        fused = torch.zeros_like(read) if self.static is None else self.static(read)
        for conv in self.dynamic:
            fused = fused + conv(h, values)
        return fused
