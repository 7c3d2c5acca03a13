"""The papers' recipes, from one table for each task: `python -m tests.recipes` writes them again."""

from pathlib import Path

from tests import classification_recipes

RECIPES = Path(__file__).parents[1] / "vssm" / "recipes"

# Rates of stochastic depth, as the official configurations have them for detection.
DROP_PATH = {
    "vmamba_tiny": 0.2,
    "vmamba_small": 0.3,
    "vmamba_base": 0.6,
    "spatial_mamba_tiny": 0.2,
    "spatial_mamba_small": 0.3,
    "spatial_mamba_base": 0.5,
}
# What has no weight decay there: parameters whose official names contain "norm".
NO_DECAY = {
    "vmamba": ["*.blocks.*norm*", "*out_norms.*"],
    "vanilla_vmamba": ["*.blocks.*norm*", "*out_norms.*", "*downsample.norm*"],
    "spatial_mamba": ["*out_norm*", "*stem.norm*", "*downsample.norm*"],
}
EPOCHS = {"1x": (12, [8, 11]), "3x": (36, [27, 33])}
DETECTORS = [
    *(("mask_rcnn", model, "1x") for model in DROP_PATH),
    *(("mask_rcnn", model, "3x") for model in DROP_PATH),
    *(("cascade_mask_rcnn", model, "3x") for model in ("spatial_mamba_tiny", "spatial_mamba_small")),
]
# In segmentation as in detection, and those of the first VMamba, which inherit Swin's.
SEGMENTATION = DROP_PATH | dict.fromkeys(("vanilla_vmamba_tiny", "vanilla_vmamba_small", "vanilla_vmamba_base"), 0.3)
TITLES = {"mask_rcnn": "Mask R-CNN", "cascade_mask_rcnn": "Cascade Mask R-CNN"}


def detector(network: str, model: str, schedule: str) -> str:
    epochs, milestones = EPOCHS[schedule]
    family = model.rpartition("_")[0]
    lines = [
        f"# {TITLES[network]} on {model}, {schedule}: COCO, 16 images per step (2 at a time, 8 times; with 8 GPUs set",
        "# trainer.accumulate_grad_batches 1). Give --data.root COCO and --init-from CHECKPOINT of a classifier.",
        "task: detection",
        "model:",
        f"  name: {model}",
        f"  network: {network}",
        f"  drop_path: {DROP_PATH[model]}",
        "data:",
        "  name: coco",
        "  image_size: 800",
        "  max_side: 1333",
    ]
    if schedule == "3x":
        lines += [
            f"  train_sides: {[*range(480, 801, 32)]}",
            "  random_crop: true",
        ]
    lines += [
        "  batch_size: 2",
        "  workers: 2",
        "optim:",
        "  lr: 1.0e-4",
        "  weight_decay: 0.05",
        f"  no_decay: {NO_DECAY[family]!r}",
        "  schedule: multistep",
        f"  milestones: {milestones}",
        "  warmup_steps: 1000",
        "  warmup_lr: 1.0e-7",
        "  ema_decay: 0.0",
        "trainer:",
        f"  max_epochs: {epochs}",
        "  accumulate_grad_batches: 8",
        "  gradient_clip_val: null",
    ]
    return "\n".join(lines) + "\n"


def segmentation(model: str) -> str:
    family = model.rpartition("_")[0]
    lines = [
        f"# UPerNet on {model}, 160,000 steps: ADE20K, 16 crops of 512 per step on one GPU (with 8 GPUs: --devices 8",
        "# --batch-size 2; BatchNorm is synchronised). Give --data.root ADE20K and --init-from CHECKPOINT of a",
        "# classifier.",
        "task: segmentation",
        "model:",
        f"  name: {model}",
        "  network: upernet",
        f"  drop_path: {SEGMENTATION[model]}",
        "data:",
        "  name: masks",
        "  image_size: 512",
        "  max_side: 2048",
        "  crop_size: 512",
        "  resize_range: [0.5, 2.0]",
        "  max_class_share: 0.75",
        "  photometric: true",
        "  batch_size: 16",
        "  workers: 8",
        "optim:",
        "  lr: 6.0e-5",
        "  weight_decay: 0.01",
        f"  no_decay: {NO_DECAY[family]!r}",
        "  schedule: poly",
        "  power: 1.0",
        "  min_lr: 0.0",
        "  warmup_steps: 1500",
        "  warmup_lr: 1.0e-6",
        "  label_smoothing: 0.0",
        "  ema_decay: 0.0",
        "trainer:",
        "  max_steps: 160000",
        "  max_epochs: 127  # of ADE20K's 20,210 images",
        "  check_val_every_n_epoch: 13",
        "  devices: 1",
        "  gradient_clip_val: null",
        "save_every_n_steps: 2000",
    ]
    return "\n".join(lines) + "\n"


def texts() -> dict[str, str]:
    """The content of each file, by its path below `vssm/recipes`."""
    found = {
        f"detection/{network}_{model}_{schedule}.yaml": detector(network, model, schedule)
        for network, model, schedule in DETECTORS
    }
    found |= classification_recipes.texts()
    return found | {f"segmentation/upernet_{model}_160k.yaml": segmentation(model) for model in SEGMENTATION}


if __name__ == "__main__":
    for name, text in texts().items():
        (RECIPES / name).parent.mkdir(exist_ok=True)
        (RECIPES / name).write_text(text, encoding="utf-8")
