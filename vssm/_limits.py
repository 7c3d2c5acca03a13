"""Which values settings may have: ranges, what goes with which task, and what contradicts itself.

Standard library only, as `vssm.settings`, whose `Settings.check` this is.
"""

from typing import Any

# Names of one precision, and the floating-point type of the operations that run in it.
LOGGERS = ("tensorboard", "wandb", "mlflow")

PRECISIONS = {
    "32-true": "float32",
    "32": "float32",
    "bf16-mixed": "bfloat16",
    "bf16": "bfloat16",
    "16-mixed": "float16",
    "16": "float16",
}
TRAINING_PRECISIONS = PRECISIONS | {"64-true": "float64"}

# Arguments of timm's model factory that a classifier trained here cannot take, and what to do instead.
_MODEL_ARGS = {
    "num_classes": "the classes of the images decide it",
    "in_chans": "the images decide it",
    "pretrained": "it is a setting of its own: model.pretrained",
    "pretrained_cfg": "use model.init_from for other weights",
    "pretrained_cfg_overlay": "use model.init_from for other weights",
    "pretrained_tag": "name the tag in model.name: NAME.TAG",
    "pretrained_strict": "use model.head reset for another classifier",
    "checkpoint_path": "it is a setting of its own: model.init_from",
    "cache_dir": "the environment variable HF_HOME names the cache",
    "drop_path_rate": "it is a setting of its own: model.drop_path",
    "features_only": "a network without a classifier cannot be trained to classify",
    "out_indices": "a network without a classifier cannot be trained to classify",
    "feature_cls": "a network without a classifier cannot be trained to classify",
    "scriptable": "training does not script the network",
    "exportable": "training does not export the network",
    "no_jit": "training does not script the network",
}

# What a run did before a setting existed: a stored run that lacks one goes on as it was.
EARLIER = {"data.erase_mode": "const", "data.max_unreadable": 0.5, "optim.temperature_epochs": 0.0}

# The values that make sense, in the usual notation: a round bracket excludes the end. What is None is left alone.
_RANGES = {
    "model.drop_path": "[0, 1)",
    "data.val_share": "(0, 1)",
    "data.shuffle_shards": "[1, inf)",
    "data.max_unreadable": "[0, 1]",
    "data.image_size": "[1, inf)",
    "data.max_side": "[1, inf)",
    "data.crop_size": "[1, inf)",
    "data.max_class_share": "(0, 1]",
    "data.test_window": "[1, inf)",
    "data.test_stride": "[1, inf)",
    "data.batch_size": "[1, inf)",
    "data.workers": "[0, inf)",
    "data.repeats": "[1, inf)",
    "data.scale": "(0, 1]",
    "data.hflip": "[0, 1]",
    "data.color_jitter": "[0, inf)",
    "data.random_erasing": "[0, 1]",
    "data.mixup": "[0, inf)",
    "data.cutmix": "[0, inf)",
    "data.mixup_prob": "[0, 1]",
    "data.mixup_switch_prob": "[0, 1]",
    "data.crop_pct": "(0, 1]",
    "data.split_seed": "[0, 4294967296)",
    "optim.lr": "(0, inf)",
    "optim.lr_batch": "[1, inf)",
    "optim.gamma": "(0, inf)",
    "optim.power": "(0, inf)",
    "optim.weight_decay": "[0, inf)",
    "optim.eps": "(0, inf)",
    "optim.layer_decay": "(0, 1]",
    "optim.warmup_epochs": "[0, inf)",
    "optim.warmup_steps": "[0, inf)",
    "optim.warmup_lr": "[0, inf)",
    "optim.min_lr": "[0, inf)",
    "optim.label_smoothing": "[0, 1)",
    "optim.ema_decay": "[0, 1)",
    "optim.mesa_weight": "[0, inf)",
    "optim.mesa_start_epoch": "[0, inf)",
    "optim.mesa_temperature": "(0, inf)",
    "optim.distill_weight": "(0, 1]",
    "optim.distill_temperature": "(0, inf)",
    "optim.max_skipped_steps": "[0, inf)",
    "optim.temperature_epochs": "[0, inf)",
    "trainer.max_epochs": "[1, inf)",
    "trainer.num_nodes": "[1, inf)",
    "trainer.accumulate_grad_batches": "[1, inf)",
    "trainer.gradient_clip_val": "[0, inf)",
    "trainer.check_val_every_n_epoch": "[1, inf)",
    "trainer.log_every_n_steps": "[1, inf)",
    "seed": "[0, 4294967296)",
    "save_every_n_steps": "[0, inf)",
    "keep_last": "[1, inf)",
    "early_stopping": "[1, inf)",
}


# The data of each task, by the name that a folder has when none is given first.
DATA_NAMES: dict[str, tuple[str, ...]] = {
    "classification": ("imagefolder", "digits", "shards", "parquet"),
    "detection": ("coco",),
    "segmentation": ("masks",),
}

# Settings that only some tasks have a use for.
_TASKS_OF: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("data.auto_augment", "data.random_erasing", "data.erase_mode", "data.mixup", "data.cutmix", "data.mixup_prob",
         "data.mixup_switch_prob", "data.class_weights", "data.crop_pct", "data.scale", "data.color_jitter",
         "data.interpolation", "data.repeats", "data.train", "data.val", "data.test",
         "data.shuffle_shards", "optim.mesa_weight", "optim.mesa_start_epoch", "optim.mesa_temperature",
         "optim.distill_teacher", "optim.distill_weight", "optim.distill_temperature", "optim.distill_kind",
         "model.adaptors"),
        ("classification",),
    ),
    **dict.fromkeys(
        ("data.train_annotations", "data.val_annotations", "data.train_sides", "data.random_crop"), ("detection",)
    ),
    **dict.fromkeys(
        ("data.label_file", "data.reduce_zero_label", "data.crop_size", "data.resize_range", "data.max_class_share",
         "data.photometric", "data.test_scales", "data.test_flip", "data.test_window", "data.test_stride"),
        ("segmentation",),
    ),
    **dict.fromkeys(("model.network", "model.network_args", "data.max_side"), ("detection", "segmentation")),
}  # fmt: skip


def _is_within(value: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    return above and (value < high if interval[-1] == ")" else value <= high)


def _check_task(settings: Any) -> None:
    kinds = DATA_NAMES.get(settings.task, ())
    if kinds and settings.data.name is not None and settings.data.name not in kinds:
        raise ValueError(f"data.name is {settings.data.name}; task {settings.task} takes {' or '.join(kinds)}")
    usual = type(settings)(task=settings.task)
    for name, tasks in _TASKS_OF.items():
        section, _, key = name.partition(".")
        value = getattr(getattr(settings, section), key)
        if kinds and settings.task not in tasks and value != getattr(getattr(usual, section), key):
            raise ValueError(f"{name} is {value}; it has a meaning for task {' and '.join(tasks)} only")


def _check_adaptors(model: Any) -> None:
    if not set(model.adaptors) <= {"t", "s"} or len(set(model.adaptors)) != len(model.adaptors):
        raise ValueError(f"model.adaptors is {model.adaptors}; expected t, s, or both once")
    if "base" in model.freeze and len(model.freeze) > 1:
        raise ValueError(f"model.freeze is {model.freeze}; base leaves adaptors, norms and classifier: it stands alone")
    if "base" in model.freeze and not model.adaptors:
        raise ValueError("model.freeze is base without adaptors to train; add them with model.adaptors t,s")


def _check_extras(settings: Any) -> None:
    optim = settings.optim
    for name, wanted in (("mesa_weight", optim.mesa_weight > 0), ("validate_raw", optim.validate_raw)):
        if wanted and optim.ema_decay == 0:
            raise ValueError(
                f"optim.{name} is {getattr(optim, name)} with optim.ema_decay 0; there are no averaged weights then: "
                "set a decay, for example 0.9999"
            )
    if optim.mesa_weight > 0 and optim.mesa_start_epoch >= settings.trainer.max_epochs:
        raise ValueError(
            f"optim.mesa_start_epoch is {optim.mesa_start_epoch} of trainer.max_epochs {settings.trainer.max_epochs}, "
            "so MESA would never begin; set it lower, or optim.mesa_weight 0"
        )
    if settings.data.repeats > 1 and not settings.data.augment:
        raise ValueError(
            f"data.repeats is {settings.data.repeats} with data.augment false: the copies would be equal; leave one out"
        )
    if optim.distill_teacher is None:
        for name in ("distill_weight", "distill_temperature", "distill_kind"):
            if getattr(optim, name) != getattr(type(optim)(), name):
                raise ValueError(f"optim.{name} is {getattr(optim, name)} without a teacher; set optim.distill_teacher")


def check(settings: Any) -> None:
    """Of a `Settings`. Raises ValueError naming the first value that makes no sense, alone or beside the others."""
    for name, interval in _RANGES.items():
        section, _, key = name.rpartition(".")
        value = getattr(getattr(settings, section) if section else settings, key)
        if value is not None and not _is_within(value, interval):
            raise ValueError(f"{name} is {value}; it must be in {interval}")
    _check_task(settings)
    _check_extras(settings)
    _check_adaptors(settings.model)
    low, high = [*settings.data.resize_range, 0, 0][:2]
    if len(settings.data.resize_range) != 2 or not 0 < low <= high:
        raise ValueError(f"data.resize_range is {settings.data.resize_range}; expected two factors, the smaller first")
    if not settings.data.test_scales or min(settings.data.test_scales) <= 0:
        raise ValueError(f"data.test_scales is {settings.data.test_scales}; expected factors above 0")
    if settings.data.train_sides and min(settings.data.train_sides) < 1:
        raise ValueError(f"data.train_sides is {settings.data.train_sides}; each must be at least 1")
    steps = settings.optim.milestones
    if (settings.optim.schedule == "multistep") != bool(steps) or sorted(steps) != steps or min(steps, default=1) <= 0:
        raise ValueError(
            f"optim.milestones is {steps} with optim.schedule {settings.optim.schedule}; multistep needs epochs in "
            "ascending order, the other schedules have none"
        )
    if not all(_is_within(beta, "[0, 1)") for beta in settings.optim.betas):
        raise ValueError(f"optim.betas are {settings.optim.betas}; each must be in [0, 1)")
    if settings.trainer.max_steps != -1 and settings.trainer.max_steps < 1:
        raise ValueError(
            f"trainer.max_steps is {settings.trainer.max_steps}; it must be at least 1, or -1 for no limit"
        )
    for part in ("train", "val"):
        name = f"limit_{part}_batches"
        limit = getattr(settings.trainer, name)
        is_share = isinstance(limit, float)
        if limit is not None and not _is_within(limit, "(0, 1]" if is_share else "[1, inf)"):
            raise ValueError(
                f"trainer.{name} is {limit}; it must be a number of batches, 1 or more, or a share in (0, 1], "
                "written with a point"
            )
    first, *others = settings.log.split("+")
    if first != "csv" or not set(others) <= set(LOGGERS) or len(set(others)) < len(others):
        raise ValueError(f"log is {settings.log}; expected csv, then any of +{', +'.join(LOGGERS)}, each once")
    if settings.trainer.precision not in TRAINING_PRECISIONS:
        raise ValueError(
            f"trainer.precision is {settings.trainer.precision}; expected 32-true, bf16-mixed, 16-mixed or 64-true"
        )
    if settings.trainer.sharded_checkpoints and settings.trainer.strategy != "fsdp":
        raise ValueError(
            f"trainer.sharded_checkpoints is true with trainer.strategy {settings.trainer.strategy}, with which every "
            "device has everything; choose --trainer.strategy fsdp, or --trainer.sharded_checkpoints false"
        )
    if settings.trainer.precision == "64-true" and settings.task != "classification":
        raise ValueError(f"trainer.precision 64-true is for classification, not {settings.task}; choose 32-true")
    for name in settings.model.args:
        if name in _MODEL_ARGS:
            raise ValueError(f"model.args.{name} cannot be given: {_MODEL_ARGS[name]}")
    if settings.data.name not in (None, "shards", "parquet"):
        for name in ("train", "val", "test"):
            if (value := getattr(settings.data, name)) is not None:
                raise ValueError(
                    f"data.{name} is {value} with data.name {settings.data.name}; it is for shards and parquet files"
                )
    if settings.data.name == "digits":
        for name, unused in (("auto_augment", None), ("random_erasing", 0.0), ("crop_pct", None)):
            if getattr(settings.data, name) != unused:
                raise ValueError(f"data.{name} has no meaning for the bundled digits: they vary in their own way")
