"""The papers' recipes are those of one table, and exempt from weight decay what the official configurations do."""

from fnmatch import fnmatchcase

import pytest
import torch
import yaml

from tests.recipes import RECIPES, texts
from vssm.models.build import create_model
from vssm.tasks.segmentation import upernet
from vssm.weights.rename import to_official


def test_the_files_are_those_of_the_table():
    """`python -m tests.recipes` writes them."""
    expected = texts()
    folders = ("detection", "segmentation")
    assert sorted(expected) == sorted(
        path.relative_to(RECIPES).as_posix() for folder in folders for path in (RECIPES / folder).iterdir()
    )
    for name, text in expected.items():
        assert (RECIPES / name).read_text(encoding="utf-8") == text, name


@pytest.mark.parametrize("model", ["vmamba_tiny", "vanilla_vmamba_tiny", "spatial_mamba_tiny"])
def test_what_has_no_weight_decay(model):
    """Official: the parameters whose name contains "norm" (decay_mult of the key "norm"), in backbone and heads."""
    recipe = yaml.safe_load((RECIPES / "segmentation" / f"upernet_{model}_160k.yaml").read_text(encoding="utf-8"))
    patterns = recipe["optim"]["no_decay"]
    with torch.device("meta"):
        network = upernet(model, 150)
        classifier = create_model(model)
    prefix = "backbone.model."
    names = [name for name, _ in network.named_parameters()]
    free = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
    family = "Spatial-Mamba" if model.startswith("spatial") else "VMamba"
    state = classifier.state_dict()
    official = dict(zip(state, to_official(state, family), strict=True))
    theirs = {name: official.get(name.removeprefix(prefix), name.replace("out_norms.", "outnorm")) for name in names}
    assert free == {name for name, other in theirs.items() if "norm" in other} and len(free) > 20
