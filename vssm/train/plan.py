"""What a training is going to be, in numbers, before it starts."""

import math
from dataclasses import dataclass

from vssm.analysis.one_image import multiply_adds
from vssm.train.fit import Experiment
from vssm.train.temperature import AnnealTemperature
from vssm.train.trainer import create_trainer


@dataclass(frozen=True)
class Plan:
    """steps: optimizer steps in all, of `images_per_step` images each on all `devices` together. `multiply_adds` of one
    image, or `not_counted` has the reason why there are none. `temperature`: the initial one of the dynamic
    convolutions, where there are any."""

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


def plan(experiment: Experiment) -> Plan:
    """The plan of an experiment that was built to train."""
    settings, model = experiment.settings, experiment.model
    trainer = create_trainer(settings)
    batches = experiment.loaders.batches_per_epoch(trainer)
    accumulated = settings.trainer.accumulate_grad_batches
    steps_per_epoch = math.ceil(batches / accumulated)
    steps = steps_per_epoch * settings.trainer.max_epochs
    macs, reason = multiply_adds(model, experiment.splits.preprocess.input_size)
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
        images_per_step=settings.data.batch_size * accumulated * trainer.world_size,
        temperature=cooled.present if cooled.modules else None,
    )
