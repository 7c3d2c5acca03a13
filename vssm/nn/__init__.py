"""Modules shared by the model families. Activations are NHWC: (B, H, W, C)."""

from vssm.nn.adaptor import AdaptorS, AdaptorT
from vssm.nn.bimamba import BidirectionalMamba
from vssm.nn.conv import Conv2d, DepthwiseConv3x3
from vssm.nn.deformable_fusion import DeformableFusion
from vssm.nn.downsample import BottleneckDownsample, ConvDownsample, PatchMerging
from vssm.nn.dynamic_fusion import DynamicFusion
from vssm.nn.init import init_linear, init_ssm
from vssm.nn.local_attention_fusion import LocalAttentionFusion
from vssm.nn.mlp import Mlp
from vssm.nn.norm import LayerNorm, RMSNorm
from vssm.nn.ss2d import SS2D
from vssm.nn.state_fns import STATE_FNS, resolve_state_fn
from vssm.nn.state_fusion import StateFusion
from vssm.nn.stem import ConvStem, PatchStem, PositionEmbedding, ResidualStem

__all__ = [
    "SS2D",
    "STATE_FNS",
    "AdaptorS",
    "AdaptorT",
    "BidirectionalMamba",
    "BottleneckDownsample",
    "Conv2d",
    "ConvDownsample",
    "ConvStem",
    "DeformableFusion",
    "DepthwiseConv3x3",
    "DynamicFusion",
    "LayerNorm",
    "LocalAttentionFusion",
    "Mlp",
    "PatchMerging",
    "PatchStem",
    "PositionEmbedding",
    "RMSNorm",
    "ResidualStem",
    "StateFusion",
    "init_linear",
    "init_ssm",
    "resolve_state_fn",
]
