"""What a training is going to be, in numbers, before it starts."""

import math
from dataclasses import dataclass

import torch

from vssm.analysis.memory import activation_bytes, state_bytes
from vssm.analysis.one_image import multiply_adds
from vssm.settings import TRAINING_PRECISIONS, Settings
from vssm.train.fit import Experiment
from vssm.train.optim import scaled
from vssm.train.temperature import AnnealTemperature
from vssm.train.trainer import create_trainer


@dataclass(frozen=True)
class Plan:
    """steps: optimizer steps in all, of `images_per_step` images each on all `devices` together. `multiply_adds` of one
    image, or `not_counted` has the reason why there are none. `temperature`: the initial one of the dynamic
    convolutions, where there are any. lr: the peak, scaled to the images per step. state_bytes, activation_bytes: of
    memory per device, for weights, gradients, optimizer and averages, and for the activations of a batch; the latter is
    None where it is not estimated (detection, segmentation)."""

    parameters: int
    trainable: int
    multiply_adds: int | None
    not_counted: str
    device: str
    devices: int
    precision: str
    batches_per_epoch: int
    steps_per_epoch: int
    steps: int
    images_per_step: int
    temperature: float | None
    lr: float
    state_bytes: int
    activation_bytes: int | None


def plan(experiment: Experiment) -> Plan:
    """The plan of an experiment that was built to train."""
    settings, model = experiment.settings, experiment.model
    trainer = create_trainer(settings)
    batches = experiment.loaders.batches_per_epoch(trainer)
    accumulated = settings.trainer.accumulate_grad_batches
    steps_per_epoch = math.ceil(batches / accumulated)
    steps = steps_per_epoch * settings.trainer.max_epochs
    macs, reason = multiply_adds(model, experiment.splits.preprocess.input_size)
    images = settings.data.batch_size * accumulated * trainer.world_size
    cooled = AnnealTemperature(model, settings.optim.temperature_epochs)
    return Plan(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        multiply_adds=macs,
        not_counted=reason,
        device=trainer.strategy.root_device.type,
        devices=trainer.world_size,
        precision=str(trainer.precision),
        batches_per_epoch=batches,
        steps_per_epoch=steps_per_epoch,
        steps=steps if trainer.max_steps < 0 else min(steps, trainer.max_steps),
        images_per_step=images,
        temperature=cooled.present if cooled.modules else None,
        lr=scaled(settings.optim, images).lr,
        state_bytes=state_bytes(model, settings.optim.ema_decay > 0) * _width(settings) + _teacher_bytes(experiment),
        activation_bytes=_activations(experiment),
    )


def _width(settings: Settings) -> int:
    """How many times as much memory tensors take in training as those of the network that was built, in float32."""
    return 2 if TRAINING_PRECISIONS[settings.trainer.precision] == "float64" else 1


def _teacher_bytes(experiment: Experiment) -> int:
    if experiment.teacher is None:
        return 0
    return sum(parameter.numel() * parameter.element_size() for parameter in experiment.teacher.model.parameters())


def _activations(experiment: Experiment) -> int | None:
    """Of a batch; None for networks that need targets in training, and for those that a trial does not suit."""
    settings = experiment.settings
    if settings.task != "classification":
        return None
    dtype = getattr(torch, TRAINING_PRECISIONS[settings.trainer.precision])
    try:
        per_image = activation_bytes(experiment.model, experiment.splits.preprocess.input_size, dtype)
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return None  # the model's own affair: an estimate is no reason to refuse it
    return per_image * settings.data.batch_size * _width(settings)
