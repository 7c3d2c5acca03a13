"""Detection as a task: resumed to the bit, split without a val folder, and the DETRs by the same way."""

import json

import pytest
import torch

from tests.train.interrupted import same_tensors, train
from vssm.data.shapes import write_shapes
from vssm.inference.checkpoint import read_checkpoint
from vssm.inference.predictor import Predictor
from vssm.settings import DataSettings, ModelSettings, OptimSettings, Settings, TrainerSettings
from vssm.tasks import TASKS

TASK = TASKS["detection"]
SMALL = {
    "fpn_channels": 16, "box_channels": 16, "mask_channels": 8, "rpn_samples": 16, "samples": 16, "proposals": 20,
    "kept": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, train=4, val=2, size=(64, 64))
    return root


def settings(root, network="mask_rcnn", arguments=SMALL, **data):
    return Settings(
        task="detection",
        model=ModelSettings("vmamba_nano", drop_path=0.2, network=network, network_args=dict(arguments)),
        data=DataSettings("coco", root=str(root), image_size=64, batch_size=2, train_sides=[48, 64], **data),
        optim=OptimSettings(1e-3, schedule="multistep", milestones=[1], warmup_steps=1, ema_decay=0),
        trainer=TrainerSettings(max_epochs=2, accelerator="cpu", log_every_n_steps=1),
    )


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "whole", settings(shapes))


def test_resume_is_exact(shapes, trained, tmp_path):
    """Killed within the second epoch: samples of anchors and boxes, sizes, mirrors and stochastic depth repeat."""
    chosen = settings(shapes)
    chosen.save_every_n_steps = 1
    _, rows, last = train(tmp_path / "run", chosen, kill_at=3)
    assert rows == trained[1] and len(rows) == 6
    assert [float(row["lr"]) for row in rows if row["train_loss"]] == pytest.approx([1e-6, 1e-3, 1e-4, 1e-4])
    same_tensors(last["state_dict"], trained[2]["state_dict"])


def test_an_evaluation_gives_what_the_training_logged(trained):
    run, rows, _ = trained
    found = Predictor.of(read_checkpoint(run.last)).evaluate().metrics()
    for name in TASK.columns:
        assert found[name] == pytest.approx(float(rows[-1][name]), abs=1e-6), name


def test_images_are_held_out_where_none_validate(shapes, tmp_path):
    (tmp_path / "images").symlink_to(shapes / "images")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").symlink_to(shapes / "annotations" / "instances_train.json")
    chosen = settings(tmp_path, val_share=0.25).data
    splits = TASK.load_splits(chosen, TASK.preprocess(chosen, "vmamba_nano"))
    assert (len(splits.train), len(splits.val)) == (3, 1)
    assert not set(splits.train.names) & set(splits.val.names)
    assert any("no folder val in" in note and "25% of the images validate" in note for note in splits.notes)
    again = TASK.load_splits(chosen, splits.preprocess, classes=splits.classes)
    assert again.train is None and again.val.names == splits.val.names
    with pytest.raises(FileNotFoundError, match="has no test split"):
        TASK.load_splits(chosen, splits.preprocess, classes=splits.classes, split="test")


@pytest.mark.parametrize("network", ["rt_detr_v2", "d_fine"])
def test_a_transformer_trains_by_the_same_way(shapes, tmp_path, network):
    chosen = settings(shapes, network, {"width": 32, "queries": 8, "layers": 2})
    chosen.trainer.max_epochs, chosen.optim.milestones = 1, [1.0]
    run, rows, _ = train(tmp_path / "run", chosen)
    assert float(rows[0]["train_loss"]) > 0 and float(rows[-1]["val_box_ap"]) >= 0 and not rows[-1]["val_mask_ap"]
    predictor = Predictor.of(read_checkpoint(run.last))
    image = sorted((shapes / "images" / "val").iterdir())[0]
    (found,) = predictor.predict(image)
    # the best pairs of a query and a class
    assert found.error is None and len(found.result) == 8 * 5 and bool(torch.isfinite(found.result.boxes).all())
    assert json.dumps(TASK.plain(found.result, predictor.classes))


@pytest.mark.parametrize(
    ("network", "arguments", "masks"),
    [
        (None, {}, True),
        ("mask_rcnn", {"masks": False}, False),
        ("cascade_mask_rcnn", {}, True),
        ("cascade_mask_rcnn", {"masks": False}, False),
        ("rt_detr_v2", {}, False),
        ("d_fine", {}, False),
    ],
)
@pytest.mark.parametrize("augment", [True, False])
def test_targets_have_masks_where_the_network_learns_them(network, arguments, masks, augment):
    chosen = Settings(task="detection")
    chosen.model = ModelSettings("vmamba_nano", network=network, network_args=arguments)
    chosen.data = DataSettings("coco", root=".", augment=augment, hflip=0.25, image_size=40)

    transform = TASK.train_transform(chosen, TASK.preprocess(chosen.data, "vmamba_nano"))
    assert transform.masks is masks and transform.flip == (0.25 if augment else 0)
