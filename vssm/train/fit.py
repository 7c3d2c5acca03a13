"""From settings to a trained network: the one path that `vssm fit` and the demo take."""

import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from vssm._ranks import is_first_process, launched_together
from vssm._version import __version__
from vssm.data.splits import Splits
from vssm.inference.adapted import describe_adaptors
from vssm.inference.checkpoint import FORMAT, check_unchanged, is_ours, read_checkpoint
from vssm.inference.run_dir import RunDir, checkpoint_file
from vssm.settings import Settings
from vssm.tasks import find_task
from vssm.tasks.adaptors import attach_adaptors
from vssm.tasks.task import Task
from vssm.train import sharding
from vssm.train.averaging import AverageWeights, ValidateRaw
from vssm.train.callbacks import SaveCheckpoints, WriteMetrics
from vssm.train.checkpoint_files import checkpoint_to_resume
from vssm.train.datamodule import Loaders
from vssm.train.environment import environment
from vssm.train.freeze import BASE, freeze
from vssm.train.guidance import LearnFromAverage, LearnFromTeacher
from vssm.train.loggers import create_boards, require
from vssm.train.module import TrainingModule
from vssm.train.nonfinite import SkipNonFinite
from vssm.train.preemption import SaveOnSignal
from vssm.train.ranks import ShareStatistics
from vssm.train.stopping import StopEarly
from vssm.train.teacher import Teacher, load_teacher
from vssm.train.temperature import AnnealTemperature
from vssm.train.trainer import asked_for, create_trainer
from vssm.train.unreadable import CountUnreadable
from vssm.weights.adaptors import save_adaptors
from vssm.weights.published import named_file


class WorkerDied(RuntimeError):
    """A process of data.workers ended by itself, or was killed."""


@dataclass
class Experiment:
    """Images, network and loaders, ready to train."""

    settings: Settings
    task: Task
    splits: Splits
    module: TrainingModule
    loaders: Loaders
    teacher: Teacher | None = None

    @property
    def model(self) -> nn.Module:
        return self.module.task.model


def build(settings: Settings, weights: bool = True) -> Experiment:
    """Finds the images, then builds the network for their classes, seeded.

    `weights=False` leaves out the initial weights of the settings, for when a checkpoint will bring its own.
    Raises OSError or ValueError with the remedy for what is missing or does not fit.
    """
    settings.check()
    chosen, task = settings.model, find_task(settings.task)
    preprocess = task.preprocess(settings.data, chosen.name)
    trainer = create_trainer(settings)  # refuses a missing GPU or an unknown precision before anything is read
    for name in settings.log.split("+"):
        require(name)
    splits = task.load_splits(settings.data, preprocess, task.train_transform(settings, preprocess))
    named = settings.optim.distill_teacher
    teacher = None if named is None else load_teacher(named, splits.classes, splits.preprocess)
    L.seed_everything(settings.seed, verbose=False)
    model = task.create_model(
        chosen, len(splits.classes), splits.preprocess.channels, pretrained=chosen.pretrained and weights
    )
    file = checkpoint_file(named_file(chosen.init_from)) if weights and chosen.init_from is not None else None
    carried = _carried_adaptors(file, chosen.adaptors)
    attach_adaptors(model, carried)
    if weights and (file is not None or not chosen.pretrained):
        notes = task.load_initial(model, file, chosen.head)
        splits = replace(splits, notes=(*splits.notes, *notes))
    attach_adaptors(model, [] if carried else chosen.adaptors)
    if chosen.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    task.check_model(model, chosen.name, splits.preprocess.input_size, len(splits.classes))
    description = {
        "format": FORMAT,
        "version": __version__,
        "classes": list(splits.classes),
        "images": splits.class_counts(),
        "fingerprints": splits.fingerprints(),
        "preprocess": splits.preprocess.as_dict(),
        "settings": settings.as_dict(),
    }
    if teacher is not None:
        description["teacher"] = teacher.fingerprint()
    frozen_norms = freeze(model, chosen.freeze)
    learner, metrics = task.learner(model, settings, splits), task.metrics(splits)
    module = TrainingModule(learner, metrics, settings, description, frozen_norms, task.inference(model, settings.data))
    loaders = Loaders(splits, settings.data, settings.seed, task.collate)
    loaders.check(trainer)
    return Experiment(settings, task, splits, module, loaders, teacher)


def build_resumed(settings: Settings, run: RunDir) -> Experiment:
    """`build` for a run that is to go on, perhaps on another number of devices: each then gets another batch size, so
    that a step keeps its images, and with them the schedule and the position in the epoch.

    A run that has no checkpoint yet is built as at first. Raises ValueError where the images of a batch cannot be
    shared evenly.
    """
    start = checkpoint_to_resume(run)
    if start is None:
        return build(settings)
    images, devices = read_checkpoint(start, shapes_only=True).images_per_batch, create_trainer(settings).world_size
    if images is not None:
        if images % devices:
            shared = ", ".join(str(n) for n in range(1, images + 1) if images % n == 0)
            raise ValueError(
                f"{start} was trained on batches of {images} images, which {devices} devices cannot share evenly; "
                f"resume with --devices of {shared} (those of all machines together)"
            )
        settings.data.batch_size = images // devices
    return build(settings, weights=False)


def _carried_adaptors(file: Path | None, wanted: Sequence[str]) -> Sequence[str]:
    """The adaptors of a run that another starts from. Raises ValueError where it is to have others, or none."""
    found = (
        read_checkpoint(file, shapes_only=True).settings.model.adaptors if file is not None and is_ours(file) else []
    )
    if found and set(found) != set(wanted):
        raise ValueError(
            f"model.init_from: {file} was trained with adaptors ({','.join(found)}); give --model.adaptors "
            f"{','.join(found)} too, or start from its base"
        )
    return found


def fit(
    experiment: Experiment, run: RunDir, resume: bool = False, callbacks: Sequence[Callback] = ()
) -> dict[str, float]:
    """Trains into `run` and returns the metrics of the last validation (averaged weights where there are any).

    With `resume` it continues from the newest intact checkpoint, exactly: weights, averages, optimizer, schedule, order
    of images, augmentation, mixing, stochastic depth; without any checkpoint it begins anew. ValueError when images,
    model or images per step are no longer those of the run (`build_resumed` keeps the latter), or all checkpoints are
    damaged. The network is left with the final weights. Raises KeyboardInterrupt on Ctrl-C, Preempted on SIGTERM and
    SIGUSR1 after saving, Diverged when the loss is not finite, WorkerDied, OSError when a file cannot be written;
    `run.last` is then as it was after the last good step.
    """
    settings = experiment.settings
    start = checkpoint_to_resume(run) if resume else None
    trainer = create_trainer(settings, [*_callbacks(experiment, run), *callbacks])
    if start is not None:
        images = settings.data.batch_size * trainer.world_size
        description = experiment.module.description | {"images_per_batch": images}
        check_unchanged(read_checkpoint(start, shapes_only=True), description, experiment.model)
    if settings.model.compile:
        experiment.model.compile()
    try:
        trainer.fit(
            experiment.module,
            datamodule=experiment.loaders,
            ckpt_path=start,
            weights_only=None if start is None else True,
        )
    except SystemExit:
        # How Lightning leaves on Ctrl-C and SIGTERM, deaf to further Ctrl-C; the message is up to the caller.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from None
    except MisconfigurationException as error:
        raise ValueError(f"{asked_for(settings.trainer)}: {' '.join(str(error).split())}") from error
    except TorchDynamoException as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"model.compile: torch.compile failed ({reason}); train without it") from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise WorkerDied(
            f"a process that loads images died ({' '.join(str(error).split())}): the machine may have run out of "
            "memory, for which fewer --workers are the remedy"
        ) from error
    if trainer.is_global_zero and not run.last.exists():
        raise ValueError("training ended before the first checkpoint; let it run longer")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # What follows, a report for one, is the affair of the first process: metrics must not wait for the others.
        torch.distributed.destroy_process_group()
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _callbacks(experiment: Experiment, run: RunDir) -> list[Callback]:
    settings, task = experiment.settings, experiment.task
    unreadable = CountUnreadable(run.unreadable, settings.data.max_unreadable)
    found: list[Callback] = [unreadable, SkipNonFinite(run, settings.optim.max_skipped_steps), ShareStatistics()]
    temperature = temperature_of(experiment)
    if temperature is not None:
        found.append(temperature)  # before the averages, which copy it
    if experiment.teacher is not None:
        found.append(LearnFromTeacher(experiment.teacher, settings.optim))
    columns, averages = list(task.columns), None
    if settings.optim.ema_decay > 0:
        averages = AverageWeights(settings.optim.ema_decay, settings.optim.ema_warmup)
        found.append(averages)
        if settings.optim.mesa_weight > 0:
            found.append(LearnFromAverage(averages, settings.optim))
        if settings.optim.validate_raw:
            found.append(ValidateRaw(averages))
            columns += [f"{name}_raw" for name in task.columns]
    if settings.trainer.strategy == sharding.NAME:
        found.append(sharding.KeepStep())
    found.append(WriteMetrics(run, columns, create_boards(run, settings), temperature))
    if settings.early_stopping is not None:
        found.append(StopEarly(task.monitor, settings.early_stopping))
    on_best = None
    if BASE in settings.model.freeze:
        on_best = partial(_save_adaptors, run)
    saver = SaveCheckpoints(run, task.monitor, settings.save_every_n_steps, on_best)
    return [*found, saver, SaveOnSignal(saver, averages)]


def _save_adaptors(run: RunDir) -> None:
    """What training changed, of the weights that best.ckpt has."""
    stored = read_checkpoint(run.best)
    model = stored.create_model()
    freeze(model, [BASE])
    save_adaptors(model, run.adaptors, describe_adaptors(stored.settings.model, stored.classes, stored.preprocess))


def temperature_of(experiment: Experiment) -> AnnealTemperature | None:
    """What lowers the temperature of the network's dynamic convolutions, where it has any and the settings want it."""
    epochs = experiment.settings.optim.temperature_epochs
    found = AnnealTemperature(experiment.model, epochs) if epochs > 0 else None
    return found if found is not None and found.modules else None


def start_run(settings: Settings) -> RunDir:
    """Creates the run directory (a free name under runs/ when none is given), writes config.yaml and environment.yaml.

    The processes that Lightning starts for further devices find the directory in the environment; those that a launcher
    started together have it in their settings. Only the first process of all creates it.
    """
    assert settings.out is not None
    if not is_first_process():
        return RunDir(settings.out if launched_together() else os.environ.get("VSSM_RUN_DIR", settings.out))
    run = RunDir.create(settings.out)
    try:
        run.write_config(settings.as_dict())
        run.write_environment(environment())
    except OSError:  # a disk that is full before anything was written: leave nothing behind
        run.close()
        shutil.rmtree(run.path)
        raise
    os.environ["VSSM_RUN_DIR"] = str(run.path)
    return run
