"""Official parameter names to ours and back: the only place that knows the official ones.

`to_ours` accepts every form that released files come in; `to_official` writes that of the released checkpoints.

    VMamba          classification models, backbones (outnorm{i}), older vanilla files (ln_1, self_attention,
                    patch_embed.proj, head), single-file models (x_proj.weight, dt_projs.weight, Sequential merging),
                    linear weights kept as 1x1 convolutions
    Spatial-Mamba   classification models and backbones
    Vim             classification models

A downsampling ends a stage in the official models and begins the next one in ours.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from vssm.weights.names import check_distinct

__all__ = ["OURS", "SPATIAL_MAMBA", "VIM", "VMAMBA", "Pairs", "family_of", "is_ours", "to_official", "to_ours"]

VMAMBA, SPATIAL_MAMBA, VIM, OURS = "VMamba", "Spatial-Mamba", "Vim", "vssm"

# Pairs (official, ours) of dotted prefixes; the first that fits a name wins, in either direction.
Pairs = list[tuple[str, str]]

_ROOT: dict[str, Pairs] = {
    VMAMBA: [
        ("patch_embed.0", "stem.conv1"),
        ("patch_embed.2", "stem.norm1"),
        ("patch_embed.5", "stem.conv2"),
        ("patch_embed.7", "stem.norm2"),
        ("pos_embed", "pos_embed.weight"),
        ("classifier.norm", "norm"),
        ("classifier.head", "head.fc"),
        # Older vanilla files. Read only: the rules above come first when writing.
        ("patch_embed.proj", "stem.conv1"),
        ("patch_embed.norm", "stem.norm1"),
        ("norm", "norm"),
        ("head", "head.fc"),
    ],
    SPATIAL_MAMBA: [
        ("patch_embed.conv1.conv", "stem.conv1"),
        ("patch_embed.conv1.norm", "stem.norm1"),
        ("patch_embed.conv2.0.conv", "stem.conv2"),
        ("patch_embed.conv2.0.norm", "stem.norm2"),
        ("patch_embed.conv2.1.conv", "stem.conv3"),
        ("patch_embed.conv2.1.norm", "stem.norm3"),
        ("patch_embed.conv3.0.conv", "stem.conv4"),
        ("patch_embed.conv3.0.norm", "stem.norm4"),
        ("patch_embed.conv3.1.conv", "stem.conv5"),
        ("patch_embed.conv3.1.norm", "stem.norm5"),
        ("head", "head.fc"),
    ],
    VIM: [
        ("norm_f", "norm"),
        ("head", "head.fc"),
    ],
}


_MIXER: Pairs = [
    ("x_proj_weight", "x_proj_weight"),
    ("dt_projs_weight", "dt_proj_weight"),
    ("dt_projs_bias", "dt_proj_bias"),
    ("A_logs", "A_log"),
    ("Ds", "D"),
    ("conv2d", "conv"),
    ("state_fusion.kernel_3", "state_fn.kernels.0"),
    ("state_fusion.kernel_3_1", "state_fn.kernels.1"),
    ("state_fusion.kernel_3_2", "state_fn.kernels.2"),
    ("state_fusion.alpha", "state_fn.alphas"),
    # The single-file VMamba. Read only.
    ("x_proj.weight", "x_proj_weight"),
    ("dt_projs.weight", "dt_proj_weight"),
]


def _mixer(official: str) -> Pairs:
    return [*((f"{official}.{a}", f"mixer.{b}") for a, b in _MIXER), (official, "mixer")]


_BLOCK: dict[str, Pairs] = {
    VMAMBA: [("norm", "norm1"), ("ln_1", "norm1"), *_mixer("op"), *_mixer("self_attention")],
    SPATIAL_MAMBA: [("ln_1", "norm1"), ("ln_2", "norm2"), *_mixer("self_attention")],
}


def _branch(suffix: str, a_log: str, ours: str) -> Pairs:
    """One direction of Vim's mixer."""
    return [
        (f"mixer.{a_log}", f"mixer.{ours}.A_log"),
        (f"mixer.D{suffix}", f"mixer.{ours}.D"),
        (f"mixer.conv1d{suffix}", f"mixer.{ours}.conv"),
        (f"mixer.x_proj{suffix}.weight", f"mixer.{ours}.x_proj_weight"),
        (f"mixer.dt_proj{suffix}.weight", f"mixer.{ours}.dt_proj_weight"),
        (f"mixer.dt_proj{suffix}.bias", f"mixer.{ours}.dt_proj_bias"),
    ]


_VIM_LAYER: Pairs = [*_branch("", "A_log", "forward_branch"), *_branch("_b", "A_b_log", "backward_branch")]

_DOWNSAMPLE: dict[str, Pairs] = {
    VMAMBA: [("1", "conv"), ("3", "norm")],
    SPATIAL_MAMBA: [
        ("conv.0.conv", "conv1"),
        ("conv.1.conv", "conv2"),
        ("conv.2.conv", "conv3"),
        ("conv.2.norm", "norm"),
    ],
}
# VMamba's patch merging, as the classification version names it and as the single-file version does.
_MERGING: Pairs = [("norm", "norm"), ("reduction", "proj"), ("1", "norm"), ("2", "proj")]

_LINEAR = re.compile(r"(.+\.)?(in_proj|out_proj|fc1|fc2|proj|fc)\.weight")


# What only the names of one family have: other networks have stages, blocks and mixers too.
_SIGNATURES = {
    OURS: r"(stages\.\d+\.)?blocks\.\d+\.mixer\.((forward|backward)_branch\.)?(A_log|x_proj_weight|dt_proj_weight)",
    VIM: r"layers\.\d+\.mixer\.(A_b_log|D_b|(conv1d|x_proj|dt_proj)_b\.\w+)",
    SPATIAL_MAMBA: r"layers\.\d+\.blocks\.\d+\.(cpe[12]|self_attention\.state_fusion)\..+",
    VMAMBA: r"layers\.\d+\.blocks\.\d+\.(op|self_attention)\.(A_logs|x_proj_weight|x_proj\.weight|dt_projs[_.]weight)",
}


def family_of(names: Iterable[str]) -> str | None:
    """Whose names these are: VMAMBA, SPATIAL_MAMBA, VIM, OURS, or None when no family's."""
    names = list(names)
    for family, signature in _SIGNATURES.items():
        if any(re.fullmatch(signature, name) for name in names):
            return family
    return None


# How the parameters of our networks are called, whatever their mixers and adaptors have inside.
_OUR_NAME = re.compile(
    r"(stem\.(conv|norm)\d|patch_embed\.proj|(stages\.\d+\.)?blocks\.\d+\.(mixer|mlp|norm\d?|cpe[12])|"
    r"stages\.\d+\.downsample\.\w+|norm|out_norms\.\d+|head\.fc|pos_embed|cls_token)(\.\w+)*"
)


def is_ours(name: str) -> bool:
    """Whether a name is one that networks of ours use."""
    return _OUR_NAME.fullmatch(name) is not None


def to_ours(state: Mapping[str, Tensor], family: str, origin: str = "the file") -> dict[str, Tensor]:
    """A state dict of `family` under our names and shapes; names that no rule knows stay as they are.

    Raises CheckpointError for two names that become one of ours; `origin` is what it calls the file.
    """
    if family == OURS:
        return {name: _as_linear(name, tensor) for name, tensor in state.items()}
    names = {name: _our_name(name, family, state) for name in state}
    check_distinct(names, origin)
    return {ours: _our_shape(ours, state[name], family) for name, ours in names.items()}


def to_official(state: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """The inverse of `to_ours` for the released form of `family`."""
    return {_official_name(n, family, state): _official_shape(n, t, family) for n, t in state.items()}


def _swap(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Replace the first source prefix that fits by its target."""
    for source, target in pairs:
        if name == source or name.startswith(source + "."):
            return target + name[len(source) :]
    return name


def _inverse(pairs: Pairs) -> Iterable[tuple[str, str]]:
    return ((ours, official) for official, ours in pairs)


def _our_name(name: str, family: str, state: Mapping[str, Tensor]) -> str:
    if match := re.fullmatch(r"layers\.(\d+)\.blocks\.(\d+)\.(.+)", name):
        return f"stages.{match[1]}.blocks.{match[2]}." + _swap(match[3], _BLOCK[family])
    if family == VIM and (match := re.fullmatch(r"layers\.(\d+)\.(.+)", name)):
        return f"blocks.{match[1]}." + _swap(match[2], _VIM_LAYER)
    if match := re.fullmatch(r"layers\.(\d+)\.downsample\.(.+)", name):
        at = f"layers.{match[1]}.downsample."
        merging = f"{at}reduction.weight" in state or f"{at}2.weight" in state
        return f"stages.{int(match[1]) + 1}.downsample." + _swap(match[2], _MERGING if merging else _DOWNSAMPLE[family])
    if match := re.fullmatch(r"outnorm(\d+)\.(.+)", name):
        return f"out_norms.{match[1]}.{match[2]}"
    return _swap(name, _ROOT[family])


def _official_name(name: str, family: str, state: Mapping[str, Tensor]) -> str:
    if match := re.fullmatch(r"stages\.(\d+)\.blocks\.(\d+)\.(.+)", name):
        return f"layers.{match[1]}.blocks.{match[2]}." + _swap(match[3], _inverse(_BLOCK[family]))
    if family == VIM and (match := re.fullmatch(r"blocks\.(\d+)\.(.+)", name)):
        return f"layers.{match[1]}." + _swap(match[2], _inverse(_VIM_LAYER))
    if match := re.fullmatch(r"stages\.(\d+)\.downsample\.(.+)", name):
        merging = f"stages.{match[1]}.downsample.proj.weight" in state
        pairs = _MERGING if merging else _DOWNSAMPLE[family]
        return f"layers.{int(match[1]) - 1}.downsample." + _swap(match[2], _inverse(pairs))
    if match := re.fullmatch(r"out_norms\.(\d+)\.(.+)", name):
        return f"outnorm{match[1]}.{match[2]}"
    return _swap(name, _inverse(_ROOT[family]))


def _as_linear(name: str, tensor: Tensor) -> Tensor:
    """(out, in) from (out, in, 1, 1): a linear layer that was saved as a 1x1 convolution."""
    if tensor.dim() == 4 and tensor.shape[2:] == (1, 1) and _LINEAR.fullmatch(name):
        return tensor.flatten(1)
    return tensor


def _our_shape(name: str, tensor: Tensor, family: str) -> Tensor:
    """Shapes of the K routes: 4 in VMamba, where single-file models flatten them, 1 in the others."""
    together = {"x_proj_weight": 2, "dt_proj_weight": 2, "dt_proj_bias": 1}.get(name.rpartition(".")[2])
    if together is None or tensor.dim() != together:
        return _as_linear(name, tensor)
    if family != VMAMBA:
        return tensor.unsqueeze(0)
    fits = tensor.numel() > 0 and len(tensor) % 4 == 0
    return tensor.reshape(4, -1, *tensor.shape[1:]) if fits else tensor  # of a shape that no model has: refused there


def _official_shape(name: str, tensor: Tensor, family: str) -> Tensor:
    if family != VMAMBA and name.rpartition(".")[2] in ("x_proj_weight", "dt_proj_weight", "dt_proj_bias"):
        return tensor.squeeze(0)
    return tensor
