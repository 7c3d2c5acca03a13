"""The backbones in the registries of mmdet and mmseg, by a registry that is called as theirs."""

import importlib
import sys
import types

import pytest
import torch

import vssm
from vssm.integrations.backbone import VSSMBackbone
from vssm.weights import CheckpointError


class Registry:
    """mmengine's, as far as it is used."""

    def __init__(self):
        self.modules = {}

    def register_module(self, name=None, force=False, module=None):
        if name in self.modules and not force:
            raise KeyError(f"{name} is already registered")
        self.modules[name] = module

    def build(self, cfg):
        cfg = dict(cfg)
        return self.modules[cfg.pop("type")](**cfg)


@pytest.mark.parametrize("framework", ["mmdet", "mmseg"])
def test_a_configuration_builds_a_backbone(monkeypatch, tmp_path, framework):
    registry = types.ModuleType(f"{framework}.registry")
    registry.MODELS = Registry()
    monkeypatch.setitem(sys.modules, framework, types.ModuleType(framework))
    monkeypatch.setitem(sys.modules, f"{framework}.registry", registry)
    monkeypatch.delitem(sys.modules, f"vssm.integrations.{framework}", raising=False)
    for _ in range(2):
        importlib.reload(importlib.import_module(f"vssm.integrations.{framework}"))
    assert list(registry.MODELS.modules) == ["VSSMBackbone"]
    source = vssm.create_model("vmamba_nano")
    torch.save(source.state_dict(), tmp_path / "file.pth")
    cfg = {
        "type": "VSSMBackbone",
        "name": "vmamba_nano",
        "checkpoint": str(tmp_path / "file.pth"),
        "out_indices": [0, 2],
    }
    backbone = registry.MODELS.build(cfg).eval()
    backbone.init_weights()
    x = torch.randn(1, 3, 32, 48)
    maps = backbone(x)
    assert isinstance(maps, tuple) and [tuple(m.shape[1:]) for m in maps] == [(32, 16, 24), (128, 4, 6)]
    plain = source.eval().forward_intermediates(x, indices=[0, 2], intermediates_only=True)
    for level, expected in zip(maps, plain):  # the norms of the maps start as they are made
        torch.testing.assert_close(level, torch.nn.functional.layer_norm(
            expected.permute(0, 2, 3, 1), expected.shape[1:2]).permute(0, 3, 1, 2), rtol=1e-4, atol=1e-4)  # fmt: skip


@pytest.mark.parametrize("framework", ["mmdet", "mmseg"])
def test_without_the_framework(monkeypatch, framework):
    monkeypatch.setitem(sys.modules, framework, None)
    monkeypatch.delitem(sys.modules, f"vssm.integrations.{framework}", raising=False)
    with pytest.raises(
        ImportError, match=f"vssm.integrations.{framework} needs {framework}.*the networks of vssm.tasks"
    ):
        importlib.import_module(f"vssm.integrations.{framework}")


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown model 'vmamba_tinny'"):
        VSSMBackbone("vmamba_tinny")
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="holds no VMamba"):
        VSSMBackbone("vmamba_nano", str(tmp_path / "other.pth"), out_indices=(0, 1))
