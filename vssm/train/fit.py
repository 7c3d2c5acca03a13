"""From settings to a trained network: the one path that `vssm fit`, `vssm validate` and the demo take."""

import logging
import os
import signal
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from vssm.data.preprocess import Preprocess
from vssm.tasks.classification import Classification, check_model_name, create_classifier
from vssm.train.callbacks import AtomicCheckpointIO, SaveCheckpoints, WriteMetrics
from vssm.train.checkpoint import TrainedModel, load_weights
from vssm.train.data import Loaders, Splits, load_splits
from vssm.train.environment import environment
from vssm.train.module import TrainingModule
from vssm.train.run_dir import RunDir, is_first_process
from vssm.train.settings import Settings
from vssm.train.unreadable import CountUnreadable


@dataclass
class Experiment:
    """Images, network and loaders, ready to train or to be judged."""

    settings: Settings
    splits: Splits
    module: TrainingModule
    loaders: Loaders

    @property
    def model(self) -> nn.Module:
        return self.module.task.model


def build(
    settings: Settings, classes: tuple[str, ...] | None = None, weights: bool = True, split: str = "val"
) -> Experiment:
    """Finds the images, then builds the network for their classes, seeded.

    `classes` names a checkpoint's classes: then only images to judge by are needed, those of `split` ("val" or
    "test"), and must be of these classes.
    `weights=False` leaves out the starting weights of the settings, for when a checkpoint will bring its own.
    Raises OSError or ValueError with the remedy for what is missing or does not fit.
    """
    settings.check()
    chosen = settings.model
    check_model_name(chosen.name)
    create_trainer(settings)  # refuses a missing GPU or an unknown precision before anything is read
    splits = load_splits(settings.data, chosen.name, classes, split)
    L.seed_everything(settings.seed, verbose=False)
    model = create_classifier(
        chosen.name,
        num_classes=len(splits.classes),
        in_chans=splits.preprocess.channels,
        pretrained=chosen.pretrained and weights,
        drop_path=chosen.drop_path,
        **chosen.args,
    )
    if chosen.init_from is not None and weights:
        load_weights(model, chosen.init_from, chosen.head)
    if chosen.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    _try(model, chosen.name, splits.preprocess)
    description = {
        "format": 1,
        "classes": list(splits.classes),
        "preprocess": splits.preprocess.as_dict(),
        "settings": settings.as_dict(),
    }
    task = Classification(model, len(splits.classes), settings.optim.label_smoothing)
    module = TrainingModule(task, settings, description)
    return Experiment(settings, splits, module, Loaders(splits, settings.data, settings.seed))


@torch.inference_mode()
def _try(model: nn.Module, name: str, preprocess: Preprocess) -> None:
    """One forward of an empty image, so that a size which the model cannot take is refused before anything starts."""
    model.eval()
    try:
        model(torch.zeros(1, *preprocess.input_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        size = "x".join(map(str, preprocess.input_size))
        raise ValueError(f"{name} cannot take images of {size}: {error}") from error
    model.train()


def fit(
    experiment: Experiment, run: RunDir, resume: bool = False, callbacks: Sequence[Callback] = ()
) -> dict[str, float]:
    """Trains into `run` and returns the metrics of the last validation (averaged weights where there are any).

    With `resume` it continues from `run.last` exactly: weights, averages, optimizer, schedule, order of images,
    augmentation, stochastic depth. The network is left with the final weights. Raises KeyboardInterrupt on Ctrl-C and
    on SIGTERM.
    """
    settings = experiment.settings
    own: list[Callback] = [
        CountUnreadable(run.unreadable),
        WriteMetrics(run),
        SaveCheckpoints(run, experiment.module.task.monitor, settings.save_every_n_steps),
    ]
    if settings.optim.ema_decay > 0:
        own.insert(0, EMAWeightAveraging(decay=settings.optim.ema_decay))
    trainer = create_trainer(settings, [*own, *callbacks])
    try:
        trainer.fit(
            experiment.module,
            datamodule=experiment.loaders,
            ckpt_path=run.last if resume else None,
            weights_only=True if resume else None,
        )
    except SystemExit:
        # How Lightning leaves on Ctrl-C and SIGTERM, deaf to further Ctrl-C; what to say then is up to the caller.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from None
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def validate(experiment: Experiment, callbacks: Sequence[Callback] = ()) -> dict[str, float]:
    """Loss and accuracy on the images to judge by, with the network's present weights.

    Images that cannot be read are left out; `val_unreadable` says how many (in this process).
    """
    unreadable = CountUnreadable()
    trainer = create_trainer(experiment.settings, [unreadable, *callbacks])
    (results,) = trainer.validate(experiment.module, datamodule=experiment.loaders, verbose=False)
    return {name: float(value) for name, value in results.items()} | {"val_unreadable": unreadable.counts["val"]}


def create_trainer(settings: Settings, callbacks: Sequence[Callback] = ()) -> L.Trainer:
    """A Trainer that says nothing by itself, leaves the order of samples to us and replaces checkpoints atomically."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # True of Lightning's own samplers; ours start where the checkpoint says.
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
    # torchmetrics has gathered the values from all processes by then.
    warnings.filterwarnings("ignore", message=".*It is recommended to use .*sync_dist=True.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    has_bar = any(hasattr(callback, "enable") for callback in callbacks)
    try:
        return L.Trainer(
            **vars(settings.trainer),
            callbacks=list(callbacks),
            plugins=[AtomicCheckpointIO()],
            logger=False,
            enable_checkpointing=any(isinstance(c, SaveCheckpoints) for c in callbacks),
            enable_progress_bar=has_bar,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ModuleNotFoundError) as error:  # the latter for a TPU
        raise ValueError(" ".join(str(error).split())) from error


def start_run(settings: Settings) -> RunDir:
    """Creates the run directory (a free name under runs/ when none is given), writes config.yaml and environment.yaml.

    The processes that Lightning starts for further devices are told the directory through the environment.
    """
    inherited = os.environ.get("VSSM_RUN_DIR")
    if inherited and not is_first_process():
        return RunDir(inherited)
    assert settings.out is not None
    run = RunDir.create(settings.out)
    run.write_config(settings.as_dict())
    run.write_environment(environment())
    os.environ["VSSM_RUN_DIR"] = str(run.path)
    return run


def load_experiment(stored: TrainedModel, settings: Settings, split: str = "val") -> Experiment:
    """A checkpoint's network with its weights and classes, on the images of `settings` that `split` names."""
    experiment = build(settings, stored.classes, weights=False, split=split)
    experiment.model.load_state_dict(stored.weights)
    return experiment
