"""Derivatives of whole models beyond the first: finite differences, forward mode, per sample, traced graphs."""

import pytest
import timm
import torch
from torch.func import functional_call, grad, jvp, vmap

import vssm  # noqa: F401  (registers the models)
from tests.ops.agree import PATHS
from vssm.ops import use

MODELS = pytest.mark.parametrize("name", ["vmamba_nano", "vim_nano", "spatial_mamba_nano"])


def model_and_images(name, batch=1):
    torch.manual_seed(0)
    small = {"dim": 24, "depth": 2} if name == "vim_nano" else {"dims": (16, 24), "depths": (1, 1)}
    model = timm.create_model(name, num_classes=4, **small).eval().double()
    return model, torch.randn(batch, 3, 16, 16, dtype=torch.float64)


def gradients(model, images, create_graph=False):
    loss = model(images).square().sum()
    return torch.autograd.grad(loss, list(model.parameters()), create_graph=create_graph)


@MODELS
@pytest.mark.parametrize("path", PATHS)
def test_a_product_with_the_hessian_is_a_difference_of_gradients(name, path):
    model, images = model_and_images(name)
    parameters = list(model.parameters())
    products = []
    for taken in (path, "reference"):
        with use(taken):
            first = gradients(model, images, create_graph=True)
            products.append(torch.autograd.grad(sum(g.sum() for g in first), parameters))
    step, differences = 1e-6, []
    with use("reference"):
        for sign in (1, -1):
            with torch.no_grad():
                for p in parameters:
                    p += sign * step
            differences.append(gradients(model, images))
            with torch.no_grad():
                for p in parameters:
                    p -= sign * step
    expected = [(above - below) / (2 * step) for above, below in zip(*differences, strict=True)]
    scale = max(e.abs().max() for e in expected)
    for found, reference, difference in zip(*products, expected, strict=True):
        assert (found - reference).abs().max() <= 1e-9 * scale
        assert (found - difference).abs().max() <= 1e-3 * scale  # a ReLU's kink and a small variance are near


@MODELS
@pytest.mark.parametrize("path", PATHS)
def test_forward_mode_is_a_difference_of_outputs(name, path):
    model, images = model_and_images(name)
    direction, step = torch.ones_like(images), 1e-6
    with use(path):
        tangent = jvp(model, (images,), (direction,))[1]
    with use("reference"), torch.no_grad():
        expected = (model(images + step * direction) - model(images - step * direction)) / (2 * step)
    assert tangent.abs().max() > 1e-5 and (tangent - expected).abs().max() <= 1e-7


@MODELS
def test_gradients_per_sample(name):
    model, images = model_and_images(name, batch=2)
    parameters = {k: p.detach() for k, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters, image):
        return functional_call(model, (parameters, buffers), (image[None],)).square().sum()

    found = vmap(grad(loss), (None, 0))(parameters, images)
    for i in range(2):
        expected = gradients(model, images[i : i + 1])
        scale = max(e.abs().max() for e in expected)
        for g, e in zip(found.values(), expected, strict=True):
            assert (g[i] - e).abs().max() <= 1e-12 * scale


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@MODELS
@pytest.mark.parametrize("enabled", [True, False])
def test_a_traced_graph_has_the_gradients_of_the_model(name, enabled):
    """At any other input, whether or not gradients were wanted while it was traced; torch traces twice and compares."""
    model, images = model_and_images(name, batch=2)
    with torch.set_grad_enabled(enabled):
        traced = torch.jit.trace(model, images.flip(1) + 1)
    assert (traced(images) - model(images)).abs().max() <= 1e-12 * model(images).abs().max()
    expected = gradients(model, images)
    for g, e in zip(gradients(traced, images), expected, strict=True):
        assert (g - e).abs().max() <= 1e-12 * e.abs().max().clamp(min=1)
