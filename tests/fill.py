"""Deterministic parameter values for golden tests (numpy only).

A golden case never ships weights.  Both sides - the oracle that produced the
stored numbers and the project under test - rebuild every tensor from nothing
but its *official checkpoint name* and its *shape*:

    from fill import fill, fill_state_dict, golden_input
    value = fill("layers.0.blocks.0.norm.weight", (96,))       # float32 ndarray

Contract (frozen; other golden sets depend on it, so never change results)
--------------------------------------------------------------------------
* rng = numpy.random.default_rng(zlib.crc32(name.encode("utf-8")))
* n   = rng.standard_normal(shape)          (float64, C order)
* u   = rng.random(shape)                   (float64, C order; used by running_var only)
* the result is computed in float64 and cast to float32 once, at the end.
* `name` is the official state-dict key, with no prefix added or removed.
* the FIRST matching rule wins; "leaf" is the part of the name after the last dot.

  1  leaf == num_batches_tracked                    -> 0
  2  leaf == running_mean                           -> 0.1 n
  3  leaf == running_var                            -> 1 + 0.2 u
  4  "A_log" in leaf, or leaf A_b_log               -> 0.5 n            (A = -exp(A_log))
  5  leaf in {Ds, D, D_b}                           -> 1 + 0.1 n
  6  leaf == dt_projs_bias, or leaf == bias and
     the module name starts with "dt_proj"          -> -3.5 + 0.5 n
  7  leaf == alpha, or leaf starts with "kernel_"   -> 0.3 n            (StateFusion)
  8  leaf contains pos_embed, or in {cls_token, dist_token}
                                                    -> 0.2 n
  9  ndim <= 1 and leaf in {weight, gamma, skip_scale}
                                                    -> 1 + 0.1 n        (any norm scale)
 10  ndim <= 1                                      -> 0.1 n            (any bias)
 11  ndim == 3 and leaf in {x_proj_weight, dt_projs_weight}   (K, out, in)
                                                    -> n / sqrt(shape[2])
 12  ndim >= 2 (linear, convolution)                -> n / sqrt(prod(shape[1:]))

Notes
* A linear kept as (out, in) and the same layer kept as a 1x1 convolution
  (out, in, 1, 1) receive the same numbers: generation is C order and fan-in agrees.
* numpy keeps the default_rng bit stream stable; `python fill.py` checks a few
  stored values so that a change of numpy's normal generator would be noticed.
"""

import math
import zlib

import numpy as np

__all__ = ["fill", "fill_state_dict", "golden_input", "sample_indices"]


def _rule(leaf, parent, ndim):
    """Name of the rule that applies (see the module docstring)."""
    if leaf == "num_batches_tracked":
        return "zero"
    if leaf == "running_mean":
        return "tenth"
    if leaf == "running_var":
        return "var"
    if "A_log" in leaf or leaf == "A_b_log":
        return "half"
    if leaf in ("Ds", "D", "D_b"):
        return "one"
    if leaf == "dt_projs_bias" or (leaf == "bias" and parent.startswith("dt_proj")):
        return "dt_bias"
    if leaf == "alpha" or leaf.startswith("kernel_"):
        return "fusion"
    if "pos_embed" in leaf or leaf in ("cls_token", "dist_token"):
        return "fifth"
    if ndim <= 1:
        return "one" if leaf in ("weight", "gamma", "skip_scale") else "tenth"
    if ndim == 3 and leaf in ("x_proj_weight", "dt_projs_weight"):
        return "grouped"
    return "fan_in"


def fill(name, shape):
    """float32 array for the official parameter or buffer `name` of `shape`."""
    shape = tuple(int(s) for s in shape)
    parts = name.split(".")
    leaf, parent = parts[-1], (parts[-2] if len(parts) > 1 else "")
    rule = _rule(leaf, parent, len(shape))
    if rule == "zero":
        return np.zeros(shape, dtype=np.float32)
    rng = np.random.default_rng(zlib.crc32(name.encode("utf-8")))
    if rule == "var":
        value = 1.0 + 0.2 * rng.random(shape)
    else:
        n = rng.standard_normal(shape)
        if rule == "tenth":
            value = 0.1 * n
        elif rule == "half":
            value = 0.5 * n
        elif rule == "one":
            value = 1.0 + 0.1 * n
        elif rule == "dt_bias":
            value = -3.5 + 0.5 * n
        elif rule == "fusion":
            value = 0.3 * n
        elif rule == "fifth":
            value = 0.2 * n
        elif rule == "grouped":
            value = n / math.sqrt(shape[2])
        else:
            value = n / math.sqrt(math.prod(shape[1:]))
    return np.asarray(value, dtype=np.float32)


def fill_state_dict(keys):
    """{name: array} for an iterable of (official name, shape) pairs."""
    return {name: fill(name, shape) for name, shape in keys}


def golden_input(seed, shape):
    """The image batch of a golden case: standard normal, float32."""
    return np.random.default_rng(int(seed)).standard_normal(tuple(shape)).astype(np.float32)


def sample_indices(size, count):
    """`count` flat indices spread over an array of `size` elements.

    index[i] = floor((2 i + 1) * size / (2 count)), the centres of `count` equal
    bins, plus (i * 7919) mod bin so that the samples do not all fall in the same
    column of a power-of-two grid; everything reduced modulo `size`.
    """
    size, count = int(size), int(count)
    step = max(1, size // count)
    return np.array(
        [((2 * i + 1) * size // (2 * count) + (i * 7919) % step) % size for i in range(count)], dtype=np.int64
    )


_CHECK = {
    ("layers.0.blocks.0.norm.weight", (96,)): [0.9521825313568115, 1.0613274574279785, 0.9079297184944153],
    ("layers.0.blocks.0.op.x_proj_weight", (4, 8, 192)): [
        0.08617216348648071,
        -0.06032564118504524,
        0.023176604881882668,
    ],
    ("layers.0.blocks.0.op.dt_projs_weight", (4, 192, 6)): [
        -0.3271201550960541,
        -0.1483975648880005,
        -0.06638896465301514,
    ],
    ("layers.0.blocks.0.op.dt_projs_bias", (4, 192)): [-3.430324077606201, -3.4707601070404053, -3.9522716999053955],
    ("layers.0.blocks.0.op.A_logs", (768, 1)): [0.7434883117675781, 0.057248879224061966, 0.3019246757030487],
    ("layers.0.blocks.0.op.Ds", (768,)): [0.9135580658912659, 0.7745938301086426, 1.0294053554534912],
    ("patch_embed.0.weight", (48, 3, 3, 3)): [-0.08448390662670135, 0.011636593379080296, 0.13927020132541656],
    ("patch_embed.0.bias", (48,)): [0.004800468683242798, -0.11403008550405502, 0.014693551696836948],
    ("classifier.head.weight", (1000, 768)): [-0.015826977789402008, 0.0035639554262161255, 0.03938378021121025],
    ("bn.running_var", (8,)): [1.038767695426941, 1.0169570446014404, 1.08009934425354],
    ("bn.running_mean", (8,)): [-0.14306138455867767, 0.009282942861318588, -0.09763268381357193],
    ("bn.num_batches_tracked", ()): [0.0],
    ("layers.0.blocks.0.self_attention.state_fusion.alpha", (3,)): [
        -0.7822798490524292,
        0.21822646260261536,
        -0.46881866455078125,
    ],
    ("layers.0.mixer.A_b_log", (4, 4)): [-0.05563440918922424, -0.23668478429317474, 0.31757688522338867],
    ("layers.0.mixer.dt_proj_b.bias", (6,)): [-4.065463066101074, -3.884828567504883, -2.6712005138397217],
    ("pos_embed", (1, 3, 4)): [0.32083162665367126, 0.10512017458677292, 0.1660359501838684],
}


def _self_check():
    for (name, shape), expected in _CHECK.items():
        got = fill(name, shape).reshape(-1)[:3]
        assert np.array_equal(got, np.array(expected, np.float32)), (name, shape, got)
    print(f"fill.py: {len(_CHECK)} stored values reproduced")


if __name__ == "__main__":
    _self_check()
