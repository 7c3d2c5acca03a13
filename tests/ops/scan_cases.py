"""Stored cases of the selective scan: inputs drawn from seeds, outputs and gradients from files (float64).

The outputs in tests/data/vmamba/selective_scan.npz come from an independent sequential recurrence with a
hand-written adjoint that agrees with the official function. Of the sequences of 1000 steps only y and the weights'
gradients are kept.
"""

from functools import cache
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parents[1] / "data" / "vmamba" / "selective_scan.npz"


@cache
def _stored():
    with np.load(DATA) as file:
        return dict(file)


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(_stored()[name])


def is_stored(name: str) -> bool:
    return name in _stored()


def scan_cases() -> list[dict]:
    """N in {1, 4, 16} by L in {1, 7, 49, 196, 1000} with all options, and four cases with options left out."""
    shapes = [(2, 4, 3), (2, 2, 3), (1, 1, 5)]
    cases = []
    for N in (1, 4, 16):
        for L in (1, 7, 49, 196, 1000):
            index = len(cases)
            batch, K, C = shapes[index % 3] if L < 1000 else ((1, 4, 2) if N < 16 else (1, 2, 2))
            cases.append(_case(f"n{N}_l{L}", 7000 + index, batch, K, C, N, L))
    left_out = [
        dict(softplus=False),
        dict(with_D=False),
        dict(with_bias=False),
        dict(softplus=False, with_D=False, with_bias=False),
    ]
    return cases + [_case(f"option{j}", 7100 + j, 2, 4, 2, 4, 49) | change for j, change in enumerate(left_out)]


def _case(name, seed, batch, K, C, N, L):
    sizes = dict(name=name, seed=seed, batch=batch, K=K, C=C, N=N, L=L)
    return sizes | dict(softplus=True, with_D=True, with_bias=True)


def scan_inputs(case: dict) -> dict:
    """float64 arrays of one case; the order of the draws is part of the data."""
    normal = np.random.default_rng(case["seed"]).standard_normal
    b, K, C, N, L = (case[k] for k in ("batch", "K", "C", "N", "L"))
    u = normal((b, K * C, L))
    delta = 0.5 * normal((b, K * C, L))
    A = -np.exp(0.5 * normal((K * C, N)))
    B, Cm = normal((b, K, N, L)), normal((b, K, N, L))
    D = normal((K * C,))
    bias = -1.0 + 0.5 * normal((K * C,))
    g = normal((b, K * C, L))
    if not case["softplus"]:  # keep the step positive without softplus
        delta, bias = 0.05 + 0.3 * np.abs(delta), np.abs(0.1 * bias)
    D, bias = D if case["with_D"] else None, bias if case["with_bias"] else None
    return dict(u=u, delta=delta, A=A, B=B, C=Cm, D=D, delta_bias=bias, g=g)
