"""The papers' recipes are those of one table, and exempt from weight decay what the official configurations do."""

from fnmatch import fnmatchcase

import pytest
import torch
import yaml

from tests.classification_recipes import RECIPES as RECIPES_OF_CLASSIFIERS
from tests.classification_recipes import missing
from tests.recipes import RECIPES, texts
from vssm.models.build import create_model
from vssm.settings import OptimSettings
from vssm.tasks.segmentation import upernet
from vssm.train.optim import create_optimizer
from vssm.weights.rename import to_official
from vssm_cli.settings import parse_settings, settings_parser, to_settings


def test_the_files_are_those_of_the_table():
    """`python -m tests.recipes` writes them."""
    expected = texts()
    folders = ("classification", "detection", "segmentation")
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


def test_every_model_of_the_papers_has_a_recipe():
    assert missing() == set()


@pytest.mark.parametrize("name", [f"classification/{name}" for name in RECIPES_OF_CLASSIFIERS])
def test_the_command_reads_it(name):
    parser = settings_parser("fit", "")
    settings = to_settings(parse_settings(parser, ["--config", name, "--data.root", "imagenet", "--batch-size", "32"]))
    assert name == f"classification/{settings.model.name}"
    assert (settings.data.batch_size, settings.data.name, settings.optim.lr) == (32, "imagefolder", 1e-3)
    assert (settings.optim.mesa_weight > 0) == name.startswith("classification/spatial_mamba")
    assert (settings.data.repeats == 3) == name.startswith("classification/vim")


def recipe_of(model):
    return yaml.safe_load((RECIPES / "classification" / f"{model}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("model", "drop_path"),
    [
        *(("vanilla_vmamba_tiny", 0.2), ("vanilla_vmamba_small", 0.3), ("vanilla_vmamba_base", 0.6)),
        *(("vmamba_tiny", 0.2), ("vmamba_small_s2l15", 0.3), ("vmamba_small_s1l20", 0.3)),
        *(("vmamba_base_s2l15", 0.6), ("vmamba_base_s1l20", 0.5)),
        *(("spatial_mamba_tiny", 0.2), ("spatial_mamba_small", 0.3), ("spatial_mamba_base", 0.5)),
    ],
)
def test_the_printed_values(model, drop_path):
    """VMamba, appendix, and Spatial-Mamba, appendix: 300 epochs, 20 of warm-up, lr 1e-3 for 1024 images."""
    recipe = recipe_of(model)
    optim, trainer = recipe["optim"], recipe["trainer"]
    assert recipe["model"]["drop_path"] == drop_path
    assert (optim["lr"], optim["weight_decay"], optim["betas"]) == (1e-3, 0.05, [0.9, 0.999])
    assert (optim["label_smoothing"], optim["ema_decay"], optim["ema_warmup"]) == (0.1, 0.9999, False)
    assert (trainer["max_epochs"], optim["warmup_epochs"]) == (300, 20)
    assert recipe["data"]["batch_size"] * trainer["accumulate_grad_batches"] == optim["lr_batch"] == 1024


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("vmamba_tiny", "VMamba"),
        ("vanilla_vmamba_tiny", "VMamba"),
        ("spatial_mamba_tiny", "Spatial-Mamba"),
        ("vim_tiny", "Vim"),
    ],
)
def test_what_has_no_weight_decay_in_classification(model, family):
    """Official: tensors of one dimension, names that end in ".bias", pos_embed and cls_token; the default rule here."""
    with torch.device("meta"):
        network = create_model(model)
        optimizer = create_optimizer(network, OptimSettings(weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    state = network.state_dict()
    official = dict(zip(state, to_official(state, family).items(), strict=True))
    for name, parameter in network.named_parameters():
        theirs, tensor = official[name]
        free = tensor.ndim == 1 or theirs.endswith(".bias") or theirs in ("pos_embed", "cls_token")
        assert decay[id(parameter)] == (0.0 if free else 0.3), (name, theirs)
