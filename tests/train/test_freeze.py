import pytest
import timm

from vssm.train.freeze import freeze


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        (["stem.*"], lambda name: name.startswith("stem.")),
        (["stem.*", "stages.0.*"], lambda name: name.startswith(("stem.", "stages.0."))),
        (["*.A_log"], lambda name: name.endswith(".A_log")),
        ([], lambda name: False),
    ],
)
def test_patterns(patterns, frozen):
    model = timm.create_model("vmamba_nano")
    freeze(model, patterns)
    assert all(parameter.requires_grad != frozen(name) for name, parameter in model.named_parameters())


def test_norms_of_frozen_modules_are_returned():
    model = timm.create_model("spatial_mamba_nano")
    names = {module: name for name, module in model.named_modules()}
    assert sorted(names[norm] for norm in freeze(model, ["stem.*"])) == [f"stem.norm{n}" for n in range(1, 6)]
    model = timm.create_model("test_resnet")
    names = {module: name for name, module in model.named_modules()}
    assert [names[norm] for norm in freeze(model, ["bn1.weight", "bn1.bias"])] == ["bn1"]
    assert freeze(timm.create_model("test_resnet"), ["bn1.weight"]) == []
    (norm,) = freeze(timm.create_model("test_resnet"), ["bn1.running_mean"])
    assert norm.weight.requires_grad


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["stme.*"], r"model\.freeze: no parameter matches 'stme\.\*'; nearest: stem\.\*"),
        (["stem"], r"no parameter matches 'stem'; nearest: stem\.\*"),
        (["stem.*", "qqqqqqq"], "no parameter matches 'qqqqqqq'; names look like stem"),
        (["*"], r"model\.freeze: \* leaves nothing to train"),
    ],
)
def test_wrong_patterns(patterns, words):
    with pytest.raises(ValueError, match=words):
        freeze(timm.create_model("vmamba_nano"), patterns)
