"""Everything that a training run can be told, as plain data: what a recipe holds and `vssm fit` parses.

Standard library only: `vssm fit --help` reads this file and must answer before torch is imported. The names under
`trainer` are those of `lightning.Trainer`.
"""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from vssm._limits import DATA_NAMES, EARLIER, PRECISIONS, TRAINING_PRECISIONS, check

__all__ = [
    "DATA_NAMES",
    "PRECISIONS",
    "TRAINING_PRECISIONS",
    "DataSettings",
    "ModelSettings",
    "OptimSettings",
    "Settings",
    "TrainerSettings",
]


@dataclass
class ModelSettings:
    """model: the network

    Args:
        name: any timm model name; `vssm models` lists ours. The backbone, where the task has a network around it
        pretrained: start from the authors' published weights
        init_from: start from this checkpoint (official .pth, .safetensors, or one of ours), or from published
            weights by their name in `vssm weights`: catalog:NAME
        head: what to do with the checkpoint's classifier: take it, or start a new one
        adaptors: Mamba-Adaptor's adaptors to add around every SSM: t (of states), s (of maps), or t,s for both
        freeze: parameters that do not train, by patterns over their names, for example "stem.* stages.0.*"; base: all
            but adaptors, norms and classifier
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
    adaptors: list[Literal["t", "s"]] = field(default_factory=list)
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
        name: digits (1797 scans of handwritten digits, bundled with scikit-learn), imagefolder, shards (tar files that
            `vssm pack` wrote), parquet, coco (objects in a COCO json) or masks (a PNG of labels beside each image); by
            what is given and the task when not given
        root: folder with train/CLASS/ and val/CLASS/, or with CLASS/ alone (imagefolder), in a layout of coco, masks,
            or what `vssm pack` wrote
        train: folder or URL (http://, s3://, ...) of the shards that train, or a .parquet file or a folder of them
        val: the same for validation; a share of train when not given
        test: the same for vssm test
        shuffle_shards: shards whose images are mixed with each other within an epoch (shards)
        max_unreadable: share of the images of an epoch or evaluation that may be unreadable: others train in their
            place; more of them stop the run
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
        repeats: copies of an image in an epoch, each augmented in its own way; an epoch is as long as before, so it has
            that much fewer images (repeated augmentation)
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

    name: Literal["digits", "imagefolder", "shards", "parquet", "coco", "masks"] | None = None
    root: str | None = None
    train: str | None = None
    val: str | None = None
    test: str | None = None
    shuffle_shards: int = 16
    max_unreadable: float = 0.001
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
    repeats: int = 1
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

    def kind_of_images(self) -> Literal["imagefolder", "shards", "parquet"] | None:
        """What `train`, `val`, `test` or `root` name, for classification; None where none is given."""
        named = self.train or self.val or self.test
        if named is not None:
            is_parquet = named.endswith(".parquet") or any(Path(named).glob("*.parquet"))
            return "parquet" if is_parquet else "shards"
        if self.root is None:
            return None
        if self.root.endswith(".parquet") or any((Path(self.root) / "train").glob("*.parquet")):
            return "parquet"
        packed = "://" in self.root or any((Path(self.root) / part / "shards.json").is_file() for part in ("", "train"))
        if packed:
            return "shards"
        alone = any(Path(self.root).glob("*.parquet")) and not any(path.is_dir() for path in Path(self.root).glob("*"))
        return "parquet" if alone else "imagefolder"


@dataclass
class OptimSettings:
    """optim: AdamW, linear warm-up, then cosine, steps or a polynomial

    Args:
        lr: peak learning rate
        lr_batch: images per step that lr, warmup_lr and min_lr are meant for: all are scaled by the images per step of
            all devices over this (the linear rule); taken as they are when not given
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
        validate_raw: validate the weights of the latest step beside the averaged ones (val_top1_raw, ...): a second
            forward of each image
        mesa_weight: weight of MESA's loss, the cross entropy with the answers of the averaged weights; 0 turns it off
        mesa_start_epoch: epochs before that loss begins
        mesa_temperature: temperature of both softmaxes in that loss
        distill_teacher: a classifier whose answers are learnt too: a model with published weights, NAME=FILE, or a run
        distill_weight: share of the loss that is the teacher's; the rest is that of the labels
        distill_temperature: temperature of both softmaxes (soft)
        distill_kind: soft: KL divergence from the teacher's probabilities; hard: cross entropy with its first class
        max_skipped_steps: how many steps in a row may be skipped because loss or gradients are NaN or infinite; one
            more ends the training
        temperature_epochs: epochs over which the temperature of dynamic convolutions falls to 1; 0 leaves it alone
    """

    lr: float = 1e-3
    lr_batch: int | None = None
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
    validate_raw: bool = False
    mesa_weight: float = 0.0
    mesa_start_epoch: int = 5
    mesa_temperature: float = 1.0
    distill_teacher: str | None = None
    distill_weight: float = 0.5
    distill_temperature: float = 1.0
    distill_kind: Literal["soft", "hard"] = "soft"
    max_skipped_steps: int = 10
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
        strategy: auto, ddp, fsdp (each device keeps a part of weights, averages and optimizer), ...
        sharded_checkpoints: with fsdp each device writes its part of a checkpoint, which is a folder then
        precision: 32-true, bf16-mixed, 16-mixed, 64-true
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
    sharded_checkpoints: bool = False
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


@dataclass
class Settings:
    """One training run.

    Args:
        task: what the network is trained for: classification, detection (with masks of the objects) or segmentation
        out: run directory to create; runs/MODEL-DATA when not given
        seed: seed of weights, order and augmentation
        save_every_n_steps: also write last.ckpt every n steps inside an epoch; 0: at the end of each epoch only
        keep_last: how many of the newest checkpoints to keep: last.ckpt, and step-N.ckpt of the ones before it
        early_stopping: stop after this many validations without a better top-1 (AP, mIoU)
        log: where metrics go: csv, and after a + also tensorboard, wandb or mlflow (csv+wandb+mlflow); each needs its
            package
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    task: str = "classification"
    out: str | None = None
    seed: int = 0
    save_every_n_steps: int = 0
    keep_last: int = 2
    early_stopping: int | None = None
    log: str = "csv"

    def as_dict(self) -> dict[str, Any]:
        """Nested plain types only: what config.yaml and a checkpoint hold."""
        plain = asdict(self)
        plain["optim"]["betas"] = list(plain["optim"]["betas"])
        return plain

    def name_data(self) -> None:
        """Puts in what a folder without a name of its kind is, by the task and by what it holds."""
        if self.data.name is not None or self.task not in DATA_NAMES:
            return
        found = self.data.kind_of_images()
        if self.task == "classification":
            self.data.name = found
        elif self.data.root is not None:
            self.data.name = DATA_NAMES[self.task][0]  # type: ignore[assignment]

    def check(self) -> None:
        """Raises ValueError naming the first value that makes no sense, alone or beside the others."""
        check(self)

    @classmethod
    def from_stored(cls, plain: dict[str, Any]) -> "Settings":
        """Of a run that may be older than some settings: it keeps what it did. Errors as `from_dict`."""
        settings = cls.from_dict(plain)
        settings.keep_earlier(plain)
        return settings

    def keep_earlier(self, plain: dict[str, Any]) -> None:
        """For settings that were read from the stored ones of a run, `plain`."""
        for name, value in EARLIER.items():
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
