"""Everything that a training run can be told, as plain data: what a recipe holds and `vssm fit` parses.

Standard library only: `vssm fit --help` reads this file and must answer before torch is imported. The names under
`trainer` are those of `lightning.Trainer`.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal


@dataclass
class ModelSettings:
    """model: the network

    Args:
        name: any timm model name; `vssm models` lists ours. The backbone, where the task has a network around it
        pretrained: start from the authors' published weights
        init_from: start from this checkpoint (official .pth, .safetensors, or one of ours)
        head: what to do with the checkpoint's classifier: take it, or start a new one
        freeze: parameters that do not train, by patterns over their names, for example "stem.* stages.0.*"
        drop_path: rate of stochastic depth; the model's own when not given
        compile: train through torch.compile; needs a C++ compiler, and minutes at the start
        channels_last: keep images and convolution weights in channels-last memory
        args: more arguments of the model's builder, for example --model.args.img_size 256
        network: the network around the backbone: mask_rcnn, cascade_mask_rcnn, ... (detection), upernet (segmentation);
            the task's first when not given
        network_args: arguments of that network, for example --model.network_args.fpn_channels 64
    """

    name: str = "vmamba_tiny"
    pretrained: bool = False
    init_from: str | None = None
    head: Literal["strict", "reset"] = "strict"
    freeze: list[str] = field(default_factory=list)
    drop_path: float | None = None
    compile: bool = False
    channels_last: bool = False
    args: dict[str, Any] = field(default_factory=dict)
    network: str | None = None
    network_args: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataSettings:
    """data: the images

    Args:
        name: digits (1797 scans of handwritten digits, bundled with scikit-learn), imagefolder, coco (objects in a
            COCO json) or masks (a PNG of labels beside each image); by the task when not given
        root: folder with train/CLASS/ and val/CLASS/, or with CLASS/ alone (imagefolder), or in a layout of coco, masks
        train_annotations: json of the training objects, where root does not have it at its usual path (coco)
        val_annotations: json of the validation objects, likewise (coco)
        label_file: names of the classes, a line each: NAME, VALUE,NAME or R G B,NAME; classes.txt in root when not
            given (masks)
        reduce_zero_label: value 0 is unlabelled and the classes count from 1, as in ADE20K (masks)
        val_share: share of each class that validates when root has no val (imagefolder), or of the images (coco)
        image_size: side in pixels; the model's own when not given (digits: 32). Detection and segmentation: the shorter
            side, 800 and 512 when not given
        max_side: longest side that an image is resized to; 1333 (detection) or 2048 (segmentation) when not given
        train_sides: shorter sides that a training image is resized to at random; image_size when not given (detection)
        random_crop: half of the training images are resized to 400, 500 or 600, and a crop with sides of 384 to 600 is
            taken, before they are resized as the others (detection)
        crop_size: side of the crops that train (segmentation)
        resize_range: factors between which a training image is resized at random before the crop (segmentation)
        max_class_share: most of a crop that one class may cover, in ten tries (segmentation)
        photometric: vary brightness, contrast, saturation and hue of training images (segmentation)
        test_scales: factors of the image size whose predictions are averaged (segmentation)
        test_flip: average with the prediction of the mirrored image too (segmentation)
        test_window: side of a sliding window over large images; whole images when not given (segmentation)
        test_stride: step of the sliding window; two thirds of its side when not given (segmentation)
        batch_size: images per step and device
        workers: processes that load images; 0 loads in the main process
        augment: vary the training images at random
        scale: smallest share of an image's area that a random crop keeps
        hflip: probability of a horizontal flip
        color_jitter: strength of colour changes; unused with auto_augment
        auto_augment: timm's policy string, for example rand-m9-mstd0.5-inc1
        random_erasing: probability of erasing a rectangle
        erase_mode: what it is filled with: noise per pixel (pixel), one random colour (rand) or the mean (const)
        mixup: alpha of mixup's Beta distribution; 0 turns it off
        cutmix: alpha of CutMix's Beta distribution; 0 turns it off
        mixup_prob: probability that a batch is mixed
        mixup_switch_prob: probability of CutMix where both are on
        class_weights: balanced gives rare classes more weight in the loss
        interpolation: how images are resized; the model's own when not given
        crop_pct: share of the resized image that validation keeps; the model's own when not given
        split_seed: seed of the split when there is no val, and of the stratified 20 % test split of the digits
    """

    name: Literal["digits", "imagefolder", "coco", "masks"] | None = None
    root: str | None = None
    train_annotations: str | None = None
    val_annotations: str | None = None
    label_file: str | None = None
    reduce_zero_label: bool = False
    val_share: float = 0.2
    image_size: int | None = None
    max_side: int | None = None
    train_sides: list[int] = field(default_factory=list)
    random_crop: bool = False
    crop_size: int = 512
    resize_range: list[float] = field(default_factory=lambda: [0.5, 2.0])
    max_class_share: float = 0.75
    photometric: bool = True
    test_scales: list[float] = field(default_factory=lambda: [1.0])
    test_flip: bool = False
    test_window: int | None = None
    test_stride: int | None = None
    batch_size: int = 64
    workers: int = 0
    augment: bool = True
    scale: float = 0.08
    hflip: float = 0.5
    color_jitter: float = 0.4
    auto_augment: str | None = None
    random_erasing: float = 0.0
    erase_mode: Literal["pixel", "rand", "const"] = "pixel"
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    class_weights: Literal["none", "balanced"] = "none"
    interpolation: Literal["bilinear", "bicubic", "nearest"] | None = None
    crop_pct: float | None = None
    split_seed: int = 0


@dataclass
class OptimSettings:
    """optim: AdamW, linear warm-up, then cosine, steps or a polynomial

    Args:
        lr: peak learning rate
        schedule: cosine to min_lr; multistep: times gamma at each milestone; poly: a power of the share left, to min_lr
        milestones: epochs after which the learning rate falls (multistep)
        gamma: what it is multiplied by there (multistep)
        power: exponent (poly)
        weight_decay: weight decay; biases, one-dimensional and the model's own exceptions go without
        no_decay: patterns over the names of the parameters that go without instead, for example "*norm*"
        betas: AdamW's betas
        eps: AdamW's eps
        layer_decay: factor on the learning rate per layer group from the head down
        warmup_epochs: epochs of linear warm-up, stepped per iteration
        warmup_steps: steps of linear warm-up, in place of warmup_epochs
        warmup_lr: learning rate that the warm-up starts from
        min_lr: learning rate that the cosine ends at
        label_smoothing: label smoothing of the cross entropy
        ema_decay: decay of the averaged weights that are validated and saved; 0 turns it off
        ema_warmup: let the decay of step t be at most (1 + t) / (10 + t); false: the same decay at every step
        temperature_epochs: epochs over which the temperature of dynamic convolutions falls to 1; 0 leaves it alone
    """

    lr: float = 1e-3
    schedule: Literal["cosine", "multistep", "poly"] = "cosine"
    milestones: list[float] = field(default_factory=list)
    gamma: float = 0.1
    power: float = 1.0
    weight_decay: float = 0.05
    no_decay: list[str] = field(default_factory=list)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    layer_decay: float | None = None
    warmup_epochs: float = 5.0
    warmup_steps: int | None = None
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    label_smoothing: float = 0.1
    ema_decay: float = 0.9999
    ema_warmup: bool = True
    temperature_epochs: float = 10.0


@dataclass
class TrainerSettings:
    """trainer: how long and on what, in the words of lightning.Trainer

    Args:
        max_epochs: passes over the training images
        max_steps: stop after this many optimizer steps; -1: max_epochs decides
        accelerator: auto, cpu, gpu
        devices: how many devices, or auto
        num_nodes: how many machines
        strategy: auto, ddp, ...
        precision: 32-true, bf16-mixed, 16-mixed
        accumulate_grad_batches: batches per optimizer step
        gradient_clip_val: largest gradient norm; null turns clipping off
        limit_train_batches: stop an epoch after this many batches, or this share of them
        limit_val_batches: the same for validation
        check_val_every_n_epoch: validate every n epochs
        log_every_n_steps: write the training loss every n steps
        deterministic: refuse operations that are not reproducible
        benchmark: let cuDNN time its algorithms
        args: any other argument of lightning.Trainer, for example --trainer.args.profiler simple
    """

    max_epochs: int = 300
    max_steps: int = -1
    accelerator: str = "auto"
    devices: int | str = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = 5.0
    limit_train_batches: int | float | None = None
    limit_val_batches: int | float | None = None
    check_val_every_n_epoch: int = 1
    log_every_n_steps: int = 10
    deterministic: bool = False
    benchmark: bool | None = None
    args: dict[str, Any] = field(default_factory=dict)


# Names of one precision, and the floating-point type of the operations that run in it.
PRECISIONS = {
    "32-true": "float32",
    "32": "float32",
    "bf16-mixed": "bfloat16",
    "bf16": "bfloat16",
    "16-mixed": "float16",
    "16": "float16",
}

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
_EARLIER = {"data.erase_mode": "const", "optim.temperature_epochs": 0.0}

# The values that make sense, in the usual notation: a round bracket excludes the end. What is None is left alone.
_RANGES = {
    "model.drop_path": "[0, 1)",
    "data.val_share": "(0, 1)",
    "data.image_size": "[1, inf)",
    "data.max_side": "[1, inf)",
    "data.crop_size": "[1, inf)",
    "data.max_class_share": "(0, 1]",
    "data.test_window": "[1, inf)",
    "data.test_stride": "[1, inf)",
    "data.batch_size": "[1, inf)",
    "data.workers": "[0, inf)",
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
    "optim.temperature_epochs": "[0, inf)",
    "trainer.max_epochs": "[1, inf)",
    "trainer.num_nodes": "[1, inf)",
    "trainer.accumulate_grad_batches": "[1, inf)",
    "trainer.gradient_clip_val": "[0, inf)",
    "trainer.check_val_every_n_epoch": "[1, inf)",
    "trainer.log_every_n_steps": "[1, inf)",
    "seed": "[0, 4294967296)",
    "save_every_n_steps": "[0, inf)",
    "early_stopping": "[1, inf)",
}


# The data of each task, by the name that a folder has when none is given first.
DATA_NAMES: dict[str, tuple[str, ...]] = {
    "classification": ("imagefolder", "digits"),
    "detection": ("coco",),
    "segmentation": ("masks",),
}

# Settings that only some tasks have a use for.
_TASKS_OF: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("data.auto_augment", "data.random_erasing", "data.erase_mode", "data.mixup", "data.cutmix", "data.mixup_prob",
         "data.mixup_switch_prob", "data.class_weights", "data.crop_pct", "data.scale", "data.color_jitter",
         "data.interpolation"),
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


@dataclass
class Settings:
    """One training run.

    Args:
        task: what the network is trained for: classification, detection (with masks of the objects) or segmentation
        out: run directory to create; runs/MODEL-DATA when not given
        seed: seed of weights, order and augmentation
        save_every_n_steps: also write last.ckpt every n steps inside an epoch; 0: at the end of each epoch only
        early_stopping: stop after this many validations without a better top-1 (AP, mIoU)
        log: where metrics go; tensorboard needs the package of that name
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    task: str = "classification"
    out: str | None = None
    seed: int = 0
    save_every_n_steps: int = 0
    early_stopping: int | None = None
    log: Literal["csv", "csv+tensorboard"] = "csv"

    def as_dict(self) -> dict[str, Any]:
        """Nested plain types only: what config.yaml and a checkpoint hold."""
        plain = asdict(self)
        plain["optim"]["betas"] = list(plain["optim"]["betas"])
        return plain

    def name_data(self) -> None:
        """Puts in what a folder without a name of its kind is, by the task."""
        if self.data.name is None and self.data.root is not None and self.task in DATA_NAMES:
            self.data.name = DATA_NAMES[self.task][0]  # type: ignore[assignment]

    def _check_task(self) -> None:
        kinds = DATA_NAMES.get(self.task, ())
        if kinds and self.data.name is not None and self.data.name not in kinds:
            raise ValueError(f"data.name is {self.data.name}; task {self.task} takes {' or '.join(kinds)}")
        usual = Settings(task=self.task)
        for name, tasks in _TASKS_OF.items():
            section, _, key = name.partition(".")
            value = getattr(getattr(self, section), key)
            if kinds and self.task not in tasks and value != getattr(getattr(usual, section), key):
                raise ValueError(f"{name} is {value}; it has a meaning for task {' and '.join(tasks)} only")

    def check(self) -> None:
        """Raises ValueError naming the first value that makes no sense, alone or beside the others."""
        for name, interval in _RANGES.items():
            section, _, key = name.rpartition(".")
            value = getattr(getattr(self, section) if section else self, key)
            if value is not None and not _is_within(value, interval):
                raise ValueError(f"{name} is {value}; it must be in {interval}")
        self._check_task()
        low, high = [*self.data.resize_range, 0, 0][:2]
        if len(self.data.resize_range) != 2 or not 0 < low <= high:
            raise ValueError(f"data.resize_range is {self.data.resize_range}; expected two factors, the smaller first")
        if not self.data.test_scales or min(self.data.test_scales) <= 0:
            raise ValueError(f"data.test_scales is {self.data.test_scales}; expected factors above 0")
        if self.data.train_sides and min(self.data.train_sides) < 1:
            raise ValueError(f"data.train_sides is {self.data.train_sides}; each must be at least 1")
        steps = self.optim.milestones
        if (self.optim.schedule == "multistep") != bool(steps) or sorted(steps) != steps or min(steps, default=1) <= 0:
            raise ValueError(
                f"optim.milestones is {steps} with optim.schedule {self.optim.schedule}; multistep needs epochs in "
                "ascending order, the other schedules have none"
            )
        if not all(_is_within(beta, "[0, 1)") for beta in self.optim.betas):
            raise ValueError(f"optim.betas are {self.optim.betas}; each must be in [0, 1)")
        if self.trainer.max_steps != -1 and self.trainer.max_steps < 1:
            raise ValueError(
                f"trainer.max_steps is {self.trainer.max_steps}; it must be at least 1, or -1 for no limit"
            )
        for part in ("train", "val"):
            name = f"limit_{part}_batches"
            limit = getattr(self.trainer, name)
            is_share = isinstance(limit, float)
            if limit is not None and not _is_within(limit, "(0, 1]" if is_share else "[1, inf)"):
                raise ValueError(
                    f"trainer.{name} is {limit}; it must be a number of batches, 1 or more, or a share in (0, 1], "
                    "written with a point"
                )
        if self.trainer.precision not in PRECISIONS:
            raise ValueError(f"trainer.precision is {self.trainer.precision}; expected 32-true, bf16-mixed or 16-mixed")
        for name in self.model.args:
            if name in _MODEL_ARGS:
                raise ValueError(f"model.args.{name} cannot be given: {_MODEL_ARGS[name]}")
        if self.data.name == "digits":
            for name, unused in (("auto_augment", None), ("random_erasing", 0.0), ("crop_pct", None)):
                if getattr(self.data, name) != unused:
                    raise ValueError(f"data.{name} has no meaning for the bundled digits: they vary in their own way")

    @classmethod
    def from_stored(cls, plain: dict[str, Any]) -> "Settings":
        """Of a run that may be older than some settings: it keeps what it did. Errors as `from_dict`."""
        settings = cls.from_dict(plain)
        settings.keep_earlier(plain)
        return settings

    def keep_earlier(self, plain: dict[str, Any]) -> None:
        """For settings that were read from the stored ones of a run, `plain`."""
        for name, value in _EARLIER.items():
            section, _, key = name.partition(".")
            if key not in plain.get(section, {}):
                setattr(getattr(self, section), key, value)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Settings":
        """The inverse of `as_dict`. Raises ValueError for names that this version does not know."""
        sections = {
            "model": ModelSettings,
            "data": DataSettings,
            "optim": OptimSettings,
            "trainer": TrainerSettings,
        }
        built: dict[str, Any] = {}
        for name, value in plain.items():
            kind = sections.get(name)
            if kind is not None and not isinstance(value, dict):
                raise ValueError(f"the configuration has {name}: {value!r}; expected names and values")
            known = {f.name for f in fields(kind or cls)}
            unknown = sorted(set(value if kind else [name]) - known)
            if unknown:
                where = f"{name}." if kind else ""
                raise ValueError(f"the configuration has {where}{unknown[0]}, which this version of vssm does not know")
            built[name] = kind(**value) if kind else value
        if "optim" in built:
            built["optim"].betas = tuple(built["optim"].betas)
        return cls(**built)
