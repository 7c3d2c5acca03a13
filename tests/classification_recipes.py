"""The papers' recipes of classification, from one table; `python -m tests.recipes` writes them with the others."""

import textwrap
from dataclasses import dataclass

from vssm.models import NAMES

SASF = "The paper with this row (Spatial-Mamba, extensions) names no recipe of its own: that of the base is taken."


@dataclass(frozen=True)
class Recipe:
    """What differs between models. notes: where paper, configuration and released files disagree or are silent."""

    drop_path: float
    batch_size: int = 128
    lr_batch: int = 1024
    weight_decay: float = 0.05
    warmup_epochs: int = 20
    ema_decay: float = 0.9999
    mesa: float = 0.0
    repeats: int = 1
    clip: str = "5.0"
    precision: str = "16-mixed"
    notes: tuple[str, ...] = ()


VMAMBA_NOTES = (
    "The paper refers to Swin for augmentation and clipping, and names no precision; here they are those of the "
    "official configuration.",
)
SPATIAL_NOTES = (
    "MESA, from the official code: soft cross entropy with the averaged model from epoch 75, a quarter; the paper "
    "names no values. The official teacher ran with kernels from its first evaluation (a stale cache); here never.",
)
VIM_NOTES = (
    "DeiT's settings in the official script: repeated augmentation, no clipping, full precision, EMA 0.99996.",
)
SWIN_NOTES = (
    "The supplement says Swin's settings and nothing else, so the drop path is Swin-T's; Swin averages no weights. "
    "The model is re-derived, without official code or weights.",
)


def vmamba(drop_path: float, *notes: str) -> Recipe:
    return Recipe(drop_path, notes=(*VMAMBA_NOTES, *notes))


def vim(size: str, *notes: str) -> Recipe:
    own = dict(drop_path=0.0, weight_decay=0.1) if size == "tiny" else dict(drop_path=0.05, batch_size=64, lr_batch=512)
    common = dict(warmup_epochs=5, ema_decay=0.99996, repeats=3, clip="null", precision="32-true")
    return Recipe(**own, **common, notes=(*VIM_NOTES, *notes))  # type: ignore[arg-type]


def swin() -> Recipe:
    return Recipe(0.2, ema_decay=0.0, notes=SWIN_NOTES)


STEP = "A step of Table 5 of the VMamba paper; the official configurations of the steps have drop path 0.2 as the rest."
RECIPES: dict[str, Recipe] = {
    "vmamba_tiny": vmamba(0.2),
    "vmamba_tiny_s1l8": vmamba(0.2),
    "vmamba_tiny_s2l5": vmamba(0.2),
    "vmamba_small": vmamba(0.3),
    "vmamba_small_s2l15": vmamba(0.3),
    "vmamba_small_s1l20": vmamba(0.3),
    "vmamba_base": vmamba(0.6),
    "vmamba_base_s2l15": vmamba(0.6),
    "vmamba_base_s1l20": vmamba(0.5),
    "vanilla_vmamba_tiny": vmamba(
        0.2, "Drop path: 0.2 in paper and configuration, 0.1 in the released file's name. The released weights are "
        "those without EMA.",
    ),
    "vanilla_vmamba_small": vmamba(0.3),
    "vanilla_vmamba_base": vmamba(
        0.6, "Drop path: 0.6 in paper, builder and the released file's name, 0.5 in the configuration."
    ),
    **{f"vmamba_tiny_step_{letter}": vmamba(0.2, STEP) for letter in "abcdefg"},
    "vmamba_tiny_sasf": vmamba(0.2, SASF),
    "spatial_mamba_tiny": Recipe(0.2, mesa=1.0, notes=SPATIAL_NOTES),
    "spatial_mamba_small": Recipe(0.3, mesa=1.5, notes=SPATIAL_NOTES),
    "spatial_mamba_base": Recipe(0.5, mesa=2.0, notes=SPATIAL_NOTES),
    "spatial_mamba_tiny_dynamic": Recipe(0.2, mesa=1.0, notes=(*SPATIAL_NOTES, SASF)),
    "vim_tiny": vim("tiny"),
    "vim_small": vim("small"),
    "vim_base": vim("base", "There is no official script for this size: the values of the small model are taken."),
    "vim_tiny_pool": vim("tiny", SASF),
    "vim_tiny_sasf": vim("tiny", SASF),
    "mamba_adaptor_b1": swin(),
    "mamba_adaptor_b2": swin(),
}  # fmt: skip


def classifier(model: str, recipe: Recipe) -> str:
    """One file. 1024 (Vim: 512 or 1024) images per step on one device, by accumulation."""
    accumulate = recipe.lr_batch // recipe.batch_size
    about = [
        f"{model} on ImageNet-1K, 300 epochs. Give --data.root IMAGENET.",
        f"{recipe.lr_batch} images per step ({recipe.batch_size} at a time, {accumulate} times; with {accumulate} GPUs "
        "set trainer.accumulate_grad_batches 1); lr follows the batch.",
        *recipe.notes,
    ]
    if recipe.precision == "16-mixed":
        about.append("On a CPU: --precision 32-true.")
    lines = [f"# {line}" for text in about for line in textwrap.wrap(text, 117)]
    lines += [
        "model:",
        f"  name: {model}",
        f"  drop_path: {recipe.drop_path}",
        "data:",
        "  name: imagefolder",
        "  image_size: 224",
        f"  batch_size: {recipe.batch_size}",
        "  workers: 8",
        "  auto_augment: rand-m9-mstd0.5-inc1",
        "  random_erasing: 0.25",
        "  erase_mode: pixel",
        "  mixup: 0.8",
        "  cutmix: 1.0",
    ]
    lines += [f"  repeats: {recipe.repeats}"] if recipe.repeats > 1 else []
    lines += [
        "optim:",
        "  lr: 1.0e-3",
        f"  lr_batch: {recipe.lr_batch}",
        "  warmup_lr: 1.0e-6",
        "  min_lr: 1.0e-5",
        f"  warmup_epochs: {recipe.warmup_epochs}",
        "  schedule: cosine",
        "  betas: [0.9, 0.999]",
        f"  weight_decay: {recipe.weight_decay}  # not of biases and one-dimensional parameters",
        "  label_smoothing: 0.1",
        f"  ema_decay: {recipe.ema_decay}",
        "  ema_warmup: false",
    ]
    if recipe.mesa:
        lines += [f"  mesa_weight: {recipe.mesa}", "  mesa_start_epoch: 75"]
    lines += [
        "trainer:",
        "  max_epochs: 300",
        f"  accumulate_grad_batches: {accumulate}",
        f"  gradient_clip_val: {recipe.clip}",
        f"  precision: {recipe.precision}",
    ]
    return "\n".join(lines) + "\n"


def texts() -> dict[str, str]:
    """The content of each file, by its path below `vssm/recipes`."""
    return {f"classification/{model}.yaml": classifier(model, recipe) for model, recipe in RECIPES.items()}


def missing() -> set[str]:
    """Models of the papers without a recipe: all but the small ones of this package."""
    return {name for name in NAMES if not name.endswith("_nano")} ^ RECIPES.keys()
