"""Weights that a network around a backbone starts from."""

import re

import pytest
import timm
import torch

import vssm
from vssm.tasks.initial import load_initial
from vssm.tasks.segmentation import upernet

NAMES = ["vmamba_nano", "test_convnext.r160_in1k", "test_resnet.r160_in1k"]
HEADS = {"channels": 8, "aux_channels": 4}


@pytest.mark.parametrize("name", NAMES)
def test_a_classifier_goes_into_the_backbone(name, tmp_path):
    classifier = timm.create_model(name)
    torch.save({"state_dict": classifier.state_dict()}, tmp_path / "classifier.pth")
    torch.manual_seed(1)
    model = upernet(name, 3, **HEADS)
    heads = {key: tensor.clone() for key, tensor in model.head.state_dict().items()}
    (note,) = load_initial(model, tmp_path / "classifier.pth", "strict")
    assert "classifier.pth" in note and "from random weights" in note
    wanted = classifier.state_dict()
    for key, tensor in model.backbone.state_dict().items():
        theirs = re.sub(r"^(stages|stem)_(\d+)\.", r"\1.\2.", re.sub(r"^(model|net)\.", "", key))
        assert "out_norms" in theirs or torch.equal(tensor, wanted[theirs]), key
    assert all(torch.equal(tensor, heads[key]) for key, tensor in model.head.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_network_goes_into_all(name, tmp_path):
    source = upernet(name, 3, **HEADS)
    torch.save(source.state_dict(), tmp_path / "whole.pth")
    torch.manual_seed(1)
    model = upernet(name, 3, **HEADS)
    assert load_initial(model, tmp_path / "whole.pth", "strict") == ()
    for key, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key


def test_other_classes(tmp_path):
    source = upernet("vmamba_nano", 3, **HEADS)
    torch.save(source.state_dict(), tmp_path / "whole.pth")
    model = upernet("vmamba_nano", 4, **HEADS)
    with pytest.raises(ValueError, match=r"whole\.pth does not fit the model"):
        load_initial(model, tmp_path / "whole.pth", "strict")
    (note,) = load_initial(model, tmp_path / "whole.pth", "reset")
    assert "4 from random weights: head.classifier.weight" in note
    weights = model.head.fpn_bottleneck[0].weight
    assert torch.equal(weights, source.head.fpn_bottleneck[0].weight)


def test_nothing_and_what_does_not_fit(tmp_path):
    model = upernet("test_resnet.r160_in1k", 3, **HEADS)
    assert "random weights" in load_initial(model, None, "strict")[0]
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth does not fit the model"):
        load_initial(model, tmp_path / "other.pth", "strict")
    torch.save(vssm.create_model("vmamba_nano", dims=[8, 16], depths=[1, 1]).state_dict(), tmp_path / "small.pth")
    with pytest.raises(ValueError, match=r"small\.pth does not fit the model"):
        load_initial(upernet("vmamba_nano", 3, **HEADS), tmp_path / "small.pth", "strict")
