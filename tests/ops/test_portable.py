"""The portable path: torch's own operators alone, so that exported programs need nothing of this package."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import vssm

SMALL = {"dims": (8, 16), "depths": (1, 1), "num_classes": 3, "drop_path_rate": 0.0}
MODELS = {
    "vmamba": ("vmamba_nano", SMALL),
    "vanilla": ("vmamba_nano", SMALL | {"d_state": 3, "gate": True}),
    "zero-order hold": ("vmamba_nano", SMALL | {"discretization": "zoh"}),
    "cascade": ("vmamba_nano", SMALL | {"scan": "cascade"}),
    "spatial mamba": ("spatial_mamba_nano", SMALL),
    "dynamic": ("spatial_mamba_nano", SMALL | {"state_fn": "dynamic"}),
    "local attention": ("spatial_mamba_nano", SMALL | {"state_fn": "local_attention"}),
    "vim": ("vim_nano", {"dim": 16, "depth": 1, "num_classes": 3}),
    "mamba adaptor": ("mamba_adaptor_b1", SMALL),
}
DEFAULT = ("vmamba", "spatial mamba", "vim")
some = pytest.mark.parametrize(
    "name", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.full) for name in MODELS]
)


def network(name):
    torch.manual_seed(0)
    kind, options = MODELS[name]
    model = vssm.create_model(kind, **options).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    return model


def program(model, dynamic=True):
    sizes = ({0: torch.export.Dim("batch", min=1, max=64)},) if dynamic else None
    with torch.no_grad(), vssm.ops.use("portable"):
        return torch.export.export(model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=sizes)


@pytest.mark.parametrize("name", MODELS)
def test_same_numbers(name):
    model, x = network(name).double(), torch.randn(2, 3, 32, 48 if name != "vim" else 32, dtype=torch.float64)
    with torch.no_grad():
        want = model(x)
        for path in ("portable", "unrolled"):
            with vssm.ops.use(path):
                torch.testing.assert_close(model(x), want, rtol=1e-10, atol=1e-12)


@some
def test_a_program_has_torch_operators_only(name):
    model, x = network(name), torch.randn(5, 3, 32, 32)
    exported = program(model)
    found = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert not [target for target in found if "vssm" in target]
    assert any("scan" in target for target in found)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(x), model(x), rtol=1e-4, atol=1e-5)


ALONE = """
import sys
sys.modules["vssm"] = None
import torch
x = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    torch.save(torch.export.load(sys.argv[1]).module()(x), sys.argv[2])
"""


def test_a_saved_program_runs_without_this_package(tmp_path):
    model, x = network("spatial mamba"), torch.randn(3, 3, 32, 32)
    torch.export.save(program(model), tmp_path / "model.pt2")
    torch.save(x, tmp_path / "x.pt")
    subprocess.run([sys.executable, "-c", ALONE, tmp_path / "model.pt2", tmp_path / "x.pt"], check=True, cwd=tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "x.pt", weights_only=True), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.full) for name in MODELS])
def test_onnx(name, tmp_path):
    """One ONNX Scan for each scan, in onnxruntime, at other batch sizes than the exported one.

    Dynamic convolution makes the images the groups of a convolution, whose number is fixed in ONNX.
    """
    import onnx
    import onnxruntime

    model = network(name)
    free = name != "dynamic"
    torch.onnx.export(program(model, free), dynamo=True, verbose=False).save(tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    assert {node.domain for node in graph.graph.node} == {""}, "ONNX's own operators"
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    for batch in (1, 4) if free else (2,):
        x = torch.randn(batch, 3, 32, 32)
        (found,) = session.run(None, {given.name: x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, model(x), rtol=1e-4, atol=1e-5)


def test_a_normed_map_does_not_bound_the_batch():
    """Small maps take a shorter way through layer_norm, by their size, which a program of free sizes must not ask."""
    exported = program(network("vmamba"))
    with torch.no_grad():
        assert exported.module()(torch.randn(40, 3, 32, 32)).shape == (40, 3)
