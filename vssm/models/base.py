"""The base of every family: timm's contract around an embedding, layers, a norm and a head.

    image (B, 3, H, W) -> embed -> layers -> norm -> head

Inside, maps are NHWC. `forward_intermediates` and `features_only` return NCHW unless asked otherwise.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from timm.models import register_notrace_function
from timm.models._features import feature_take_indices  # the one name without a public home
from torch import Tensor, nn
from torch.fx import Proxy

from vssm.nn import init_linear
from vssm.nn.choices import check_choice

__all__ = ["Backbone", "check_image", "drop_path_rates"]


@register_notrace_function
def check_image(x: Tensor, in_chans: int, min_size: int) -> Tensor:
    """x itself, or one ValueError that names what an image batch of this model must be."""
    if not torch.jit.is_scripting():
        _refuse_proxy(x)
    if x.dim() != 4:
        raise ValueError(f"expected an image batch (B, {in_chans}, H, W), got {x.dim()} dimensions: {list(x.shape)}")
    if x.shape[1] != in_chans:
        raise ValueError(
            f"expected {in_chans} channels, got {x.shape[1]} in {list(x.shape)}; build the model with in_chans="
            f"{x.shape[1]}, or give it (B, {in_chans}, H, W)"
        )
    if x.shape[0] == 0:
        raise ValueError(f"the batch is empty: {list(x.shape)}; give at least one image")
    if x.shape[2] < min_size or x.shape[3] < min_size:
        raise ValueError(
            f"the image is {x.shape[2]} x {x.shape[3]}, too small for a total stride of {min_size}; resize it to at "
            f"least {min_size} x {min_size}, or choose a model with fewer stages or a smaller patch_size"
        )
    if not x.is_floating_point():
        raise ValueError(f"expected a floating point image, got {x.dtype}; convert it with .float() and normalise it")
    return x


def _refuse_proxy(x: object) -> None:
    if isinstance(x, Proxy):
        raise ValueError(
            "torch.fx.symbolic_trace cannot trace this model, whose layers branch on the shape of the image; use "
            "torch.export.export(model, (image,)), or trace it as timm does: features_only=True, feature_cls='fx', or "
            "torchvision's create_feature_extractor with tracer_kwargs={'leaf_modules': "
            "timm.models.get_notrace_modules(), 'autowrap_functions': timm.models.get_notrace_functions()}"
        )


class Backbone(nn.Module):
    """A network of this package: VMamba, Spatial-Mamba, Vim, Mamba-Adaptor.

    A family builds its layers, `norm` and `head`, and defines how an image becomes the first map (`_embed`), how the
    last one is normed (`forward_features`, `_finish`) and how a map is returned (`_as_map`).

    Args:
        layers: name of the attribute with the layers, an nn.Sequential of stages or blocks.
        feature_info: channels, stride and module of each layer's output, as timm describes them.
        in_chans: channels of the images.
        num_classes: 0 for no classifier.
        min_size: pixels per side that an image has at least.
    """

    output_fmts: ClassVar[tuple[str, ...]] = ("NCHW", "NHWC")
    # Parameters that decay by their shape and must not, by the official rules (1-D tensors and biases never do).
    undecayed_prefixes: ClassVar[tuple[str, ...]] = ()
    undecayed_suffixes: ClassVar[tuple[str, ...]] = ()

    if TYPE_CHECKING:  # TorchScript reads annotations and knows no modules
        norm: nn.Module
        head: nn.Module

    def __init__(self, layers: str, feature_info: list[dict[str, Any]], in_chans: int, num_classes: int, min_size: int):
        super().__init__()
        if in_chans < 1 or num_classes < 0:
            raise ValueError(
                f"in_chans must be at least 1 and num_classes at least 0, got {in_chans} and {num_classes}"
            )
        self.in_chans, self.num_classes, self.min_size = in_chans, num_classes, min_size
        self.feature_info = feature_info
        self.num_features = self.head_hidden_size = int(feature_info[-1]["num_chs"])
        self._layers = layers

    # ---- forward ----

    def embed(self, x: Tensor) -> Tensor:
        """An image batch (B, in_chans, H, W) to the map that the first layer takes."""
        return self._embed(check_image(x, self.in_chans, self.min_size))

    def _embed(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        """What the head takes: normed and not pooled."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify; with pre_logits, only pool."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, num_classes). ValueError for what is not an image batch of this model."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The outputs of layers as maps: of stages, taken before the next downsampling, or of Vim's blocks.

        Args:
            indices: the layers to return: a list, the last n for an int, all for None.
            norm: apply the final norm: in a hierarchy to the last stage's output (a model with out_norms norms every
                output anyway), in Vim to each.
            stop_early: leave out the layers after the last wanted one.
            output_fmt: "NCHW" or "NHWC"; Vim also "NLC".
            intermediates_only: return the list alone, else (forward_features(x), list).
        """
        check_choice("output_fmt", output_fmt, self.output_fmts)
        layers = self._get_layers()
        take, last = feature_take_indices(len(layers), indices)
        used = layers[: last + 1] if stop_early else layers
        size, x = x.shape[2:], self.embed(x)
        intermediates = []
        for i, layer in enumerate(used):
            x = self._run_layer(layer, x)
            if i in take:
                intermediates.append(self._as_map(x, i, norm, size, output_fmt))
        return intermediates if intermediates_only else (self._finish(x, len(used) == len(layers)), intermediates)

    def _get_layers(self) -> list[nn.Module]:
        return list(getattr(self, self._layers))

    def _run_layer(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x)

    def _as_map(self, x: Tensor, index: int, norm: bool, size: Sequence[int], output_fmt: str) -> Tensor:
        """The output of a layer as it is returned; `size` is that of the image."""
        raise NotImplementedError

    def _finish(self, x: Tensor, complete: bool) -> Tensor:
        """The output of the last layer that ran, normed; `complete`: no layer was left out."""
        raise NotImplementedError

    # ---- classifier and pruning ----

    def get_classifier(self) -> nn.Module:
        """The last linear layer, nn.Identity() without classes."""
        return self.head.fc  # type: ignore[return-value]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier for another number of classes (0: none), and another pooling if given."""
        self.num_classes = num_classes
        head: Any = self.head
        head.reset(num_classes, global_pool, in_features=self.num_features)
        self.head_hidden_size = head.num_features
        init_linear(head.fc)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the given intermediates do not need, and return their indices."""
        layers = self._get_layers()
        take, last = feature_take_indices(len(layers), indices)
        setattr(self, self._layers, nn.Sequential(*layers[: last + 1]))
        kept_end = self._prune(take, last, last < len(layers) - 1)
        if prune_norm or not kept_end:
            self.norm = nn.Identity()
        if prune_head or not kept_end:
            self.reset_classifier(0, "")
        return take

    def _prune(self, take: list[int], last: int, shortened: bool) -> bool:
        """What a family drops besides layers. Returns whether the final norm and the head still fit."""
        return True

    # ---- training ----

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward instead of keeping their activations."""
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that must not decay, although weight decay by shape would include them."""
        return {
            name
            for name, _ in self.named_parameters()
            if name.startswith(self.undecayed_prefixes) or name.endswith(self.undecayed_suffixes)
        }


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Stochastic depth of each block, growing linearly from 0 to `rate`. ValueError outside of [0, 1)."""
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path_rate must be in [0, 1), got {rate}")
    return torch.linspace(0, rate, depth, device="cpu").tolist()
