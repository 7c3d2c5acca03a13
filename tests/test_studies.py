"""The benchmarks of recipe parts and of fine-tuning: what is compared, on which digits, and how cells are summed up."""

import json

import pytest
import torch

import vssm
from tests.benchmark_scripts import load


@pytest.fixture(scope="module")
def scripts():
    return {name: load(name) for name in ("cells", "recipe_parts", "finetuning")}


def score(arm, seed):
    return {"top1": 0.5 + 0.1 * seed + 0.2 * (arm == "b"), "parameters": 7}


def test_cells_run_once_and_are_summed_up(scripts, tmp_path, capsys):
    study = scripts["cells"].Study(["a", "b"], 3, {"epochs": 1}, score, tmp_path)
    study.path("a", 0).parent.mkdir()
    before = torch.get_num_threads()
    for arm in "ab":
        for seed in range(3):
            scripts["cells"]._run(study, arm, seed)
    torch.set_num_threads(before)
    study.run(1)  # nothing is left for another process
    assert "6 cells, 6 there already" in capsys.readouterr().out
    first, second = study.summary()
    assert first["top1"] == pytest.approx(0.6) and first["top1_sd"] == pytest.approx(0.1)
    assert (second["gain"], second["gain_sd"]) == (pytest.approx(0.2), pytest.approx(0, abs=1e-9))
    assert (second["seeds"], second["parameters"], len(second["scores"])) == (3, 7, 3)
    other = scripts["cells"].Study(["a"], 3, {"epochs": 2}, score, tmp_path)
    assert other.stored("a", 0) is None and other.summary() == []


def test_parts_are_on_where_the_arm_says_so(scripts):
    script = scripts["recipe_parts"]
    for arm, parts in script.ARMS.items():
        settings = script.settings_of(arm, 3, 8)
        settings.check()
        optim = settings.optim
        on = {"EMA": optim.ema_decay, "MESA": optim.mesa_weight, "mixup": settings.data.mixup}
        on["smoothing"] = optim.label_smoothing
        assert {name for name, value in on.items() if value > 0} == set(parts), arm
        assert (settings.seed, optim.mesa_start_epoch) == (3, 2)


def test_few_labels_are_equal_per_class_and_never_tested(scripts):
    script = scripts["recipe_parts"]
    experiment = script.build(script.settings_of("none", 0, 4))
    splits = script.few_labels(experiment, 0).splits
    train, test = set(splits.train.positions.tolist()), set(splits.val.positions.tolist())
    assert (len(splits.train), len(train), len(test)) == (1000, 100, 1697) and not train & test
    assert splits.train.labels.bincount().tolist() == [100] * 10 and splits.train.augment
    other = script.few_labels(experiment, 1).splits
    assert set(other.train.positions.tolist()) != train


def test_digits_of_a_transfer_do_not_overlap(scripts):
    script = scripts["finetuning"]
    images, labels = script.digits(negatives=True)
    plain, _ = script.digits(negatives=False)
    assert images.shape == (897, 1, 16, 16) and plain.shape == (900, 1, 16, 16) and len(labels.unique()) == 10
    assert (images.amin(), images.amax()) == pytest.approx((script.DARK, script.LIGHT), abs=1e-5)
    assert images.median() > 1 and plain.median() < 0, "dark on light"
    originals = {image.numpy().tobytes() for image in plain}
    assert all((script.DARK + script.LIGHT - image).numpy().tobytes() not in originals for image in images[:50])
    train, choosing, test = script.parts(labels, 0)
    everything = torch.cat([train, choosing, test])
    assert everything.unique().numel() == everything.numel() == len(labels)
    assert labels[train].bincount().tolist() == [script.PER_CLASS] * 10
    assert torch.equal(script.parts(labels, 1)[2], test) and not torch.equal(script.parts(labels, 1)[0], train)


def test_what_trains_in_each_way(scripts):
    script = scripts["finetuning"]
    pytest.importorskip("peft")
    images = torch.randn(2, 1, 16, 16)
    base = vssm.create_model("vmamba_nano", **script.NETWORK).eval()
    with torch.inference_mode():
        expected = base(images)
    trained = {}
    for arm, prepare in script.ARMS.items():
        if prepare is None:
            continue
        model = vssm.create_model("vmamba_nano", **script.NETWORK).eval()
        model.load_state_dict(base.state_dict())
        model = prepare(model).eval()
        with torch.inference_mode():
            torch.testing.assert_close(model(images), expected)  # each starts as the base
        trained[arm] = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        if arm == "LoRA":
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter)
            with torch.inference_mode():
                assert (model(images) - expected).abs().max() > 0.1  # no shortcut passes LoRA by
    assert trained["linear probing"] == {"head.fc.weight", "head.fc.bias"}
    assert trained["full fine-tuning"] == {name for name, _ in base.named_parameters()}
    assert trained["adaptors and all (b)"] > trained["full fine-tuning"]
    norms = trained["norms and classifier"]
    assert norms > trained["linear probing"] and all("norm" in name or name.startswith("head") for name in norms)
    assert all("adaptor" in name for name in trained["adaptors, frozen base (c)"] - norms)
    assert all("lora" in name for name in trained["LoRA"] - trained["linear probing"])


def test_the_rate_is_chosen_by_other_digits_than_those_that_test(scripts, tmp_path):
    script = scripts["finetuning"]
    study = scripts["cells"].Study(["LoRA @ 0.001", "LoRA @ 0.01"], 2, {}, score, tmp_path)
    study.path("", 0).parent.mkdir()
    for arm, chosen_by, top1 in (("LoRA @ 0.001", 0.9, 0.5), ("LoRA @ 0.01", 0.8, 0.7)):
        for seed in range(2):
            cell = study.settings(arm, seed) | {"chosen_by": chosen_by, "top1": top1 + 0.02 * seed, "seconds": 1}
            cell |= {"trainable": 5, "share": 0.1, "training_seconds": 2.0}
            study.path(arm, seed).write_text(json.dumps(cell))
    (row,) = script.rows(study, {"LoRA": [0.001, 0.01]})
    assert row["rate"] == 0.001 and row["top1"] == pytest.approx(0.51)
    script.write([row], tmp_path)
    assert "| LoRA | 5 | 10.0 | 0.001 | 51.0 | 1.4 | 2.0 |" in (tmp_path / "finetuning.md").read_text()
