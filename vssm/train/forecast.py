"""How long a training will take on several devices, and what it asks of memory, network and input: from figures of one
device and one loader core, by rules that are written down here."""

import itertools
import math
import statistics
import time
from dataclasses import dataclass
from io import BytesIO

import torch
from PIL import Image

from vssm.analysis.memory import activation_bytes, state_bytes
from vssm.analysis.throughput import LEAST_TURNS, Conditions, Runner
from vssm.data.image import read_image
from vssm.data.photographs import photographs
from vssm.settings import DataSettings, OptimSettings
from vssm.tasks.classification import create_classifier
from vssm.tasks.classification.transforms import preprocess_for, train_transform
from vssm.train.optim import create_optimizer

__all__ = ["Asked", "Figures", "Forecast", "forecast", "measure_device", "measure_loader", "memory_of"]

CPU_BATCH = 8  # a processor gains nothing from larger ones
JPEG = (500, 375)  # the usual size of an image of ImageNet


@dataclass(frozen=True)
class Asked:
    """batch_size: images per device and step. bandwidth: bytes per second that a device sends in an all-reduce, None
    where that is to be hidden behind the backward. Raises ValueError for values that make no step."""

    data_size: int
    gpus: int = 1
    batch_size: int = 128
    epochs: int = 300
    bandwidth: float | None = None

    def __post_init__(self):
        for name in ("data_size", "gpus", "batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.bandwidth is not None and not self.bandwidth > 0:
            raise ValueError(f"bandwidth must be above 0, not {self.bandwidth}")
        if self.data_size < self.gpus * self.batch_size:
            raise ValueError(
                f"data_size {self.data_size} is less than one step of {self.gpus} x {self.batch_size} images; "
                "a smaller batch_size, or fewer gpus"
            )


@dataclass(frozen=True)
class Figures:
    """Of one device and one loader core. images_per_second: of training steps. loader_images_per_second: read and
    augmented by one core. gradient_bytes: of what is all-reduced in a step. state_bytes: weights, gradients, optimizer
    and averages; activation_bytes: of one image; None where not counted."""

    images_per_second: float
    loader_images_per_second: float
    gradient_bytes: int
    state_bytes: int | None = None
    activation_bytes: int | None = None


@dataclass(frozen=True)
class Forecast:
    """compute_seconds: of a step without its all-reduce. sent_bytes: by each device in each step. reduce_seconds: None
    without a bandwidth. step_seconds: with it. hidden_bandwidth: bytes per second under which the all-reduce, were it
    wholly hidden behind computing, would be what takes longest. input_images_per_second: per device; loader_cores: per
    device, whole ones. memory_bytes: per device, from below; None where not counted."""

    steps_per_epoch: int
    steps: int
    compute_seconds: float
    sent_bytes: int
    reduce_seconds: float | None
    step_seconds: float
    hidden_bandwidth: float
    hours: float
    images_per_second: float
    input_images_per_second: float
    loader_cores: int
    memory_bytes: int | None


def forecast(asked: Asked, figures: Figures) -> Forecast:
    """Rules: a step takes as long as the slower of computing (at the speed of one device alone) and a ring all-reduce,
    in which each of G devices sends 2 (G - 1) / G times the bytes of the gradients; the last incomplete step of an
    epoch is left out; loaders keep up; validation and checkpoints take nothing. Raises ValueError for speeds that are
    not above 0."""
    for name in ("images_per_second", "loader_images_per_second"):
        if not getattr(figures, name) > 0:
            raise ValueError(f"{name} must be above 0, not {getattr(figures, name)}")
    compute = asked.batch_size / figures.images_per_second
    sent = 2 * (asked.gpus - 1) * figures.gradient_bytes // asked.gpus
    reduce = None if asked.bandwidth is None else sent / asked.bandwidth
    step = max(compute, reduce or 0.0)
    steps_per_epoch = asked.data_size // (asked.gpus * asked.batch_size)
    needed = asked.batch_size / step
    counted = figures.state_bytes is not None and figures.activation_bytes is not None
    return Forecast(
        steps_per_epoch=steps_per_epoch,
        steps=steps_per_epoch * asked.epochs,
        compute_seconds=compute,
        sent_bytes=sent,
        reduce_seconds=reduce,
        step_seconds=step,
        hidden_bandwidth=sent / compute,
        hours=steps_per_epoch * asked.epochs * step / 3600,
        images_per_second=asked.gpus * needed,
        input_images_per_second=needed,
        loader_cores=math.ceil(needed / figures.loader_images_per_second),
        memory_bytes=figures.state_bytes + figures.activation_bytes * asked.batch_size  # type: ignore[operator]
        if counted
        else None,
    )


def measure_device(
    name: str, image_size: int, batch_size: int, precision: str, device: torch.device, seconds: float = 10.0
) -> tuple[float, int]:
    """(images per second, images at a time) of training steps of a model: forward, loss, backward and AdamW, medians of
    at least three. On the CPU at most eight images at a time, for the speed of more is the same.

    Raises ValueError when the model is not known, or the batch does not fit into the memory.
    """
    batch = min(batch_size, CPU_BATCH) if device.type == "cpu" else batch_size
    conditions = Conditions(batch=batch, training=True, device=str(device), precision=precision)
    try:
        model = create_classifier(name)
        runner = Runner(model, (image_size, image_size), conditions)
        optimizer = create_optimizer(runner.model, OptimSettings())
        steps, end = [], math.inf
        while len(steps) <= LEAST_TURNS or time.perf_counter() < end:
            forward_backward = runner.seconds()
            start = time.perf_counter()
            optimizer.step()
            if device.type != "cpu":
                torch.accelerator.synchronize()
            steps.append(forward_backward + time.perf_counter() - start)
            if len(steps) == 1:  # the first compiles, allocates and fills caches
                end = time.perf_counter() + seconds
    except torch.OutOfMemoryError as error:
        raise ValueError(f"{batch} images of {image_size} do not fit into the memory; a smaller batch size") from error
    return batch / statistics.median(steps[1:]), batch


def measure_loader(name: str, image_size: int, augment: str, seconds: float = 3.0) -> float:
    """Images per second that one core reads and augments: JPEGs of 500 x 375 in memory, decoded, cropped and varied as
    the recipes do (`augment` is their policy), in processor time. Reading from a disk or a network comes on top."""
    data = DataSettings(image_size=image_size, auto_augment=augment, random_erasing=0.25)
    preprocess = preprocess_for(data, name)
    transform = train_transform(data, preprocess)
    files = []
    for photograph in photographs(2):
        buffer = BytesIO()
        Image.open(photograph).convert("RGB").resize(JPEG, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    done, start = 0, 0.0
    for number, content in enumerate(itertools.cycle(files)):
        if number == len(files):  # the first of each warm up
            done, start = 0, time.process_time()
        if number > 4 * len(files) and time.process_time() - start >= seconds:
            break
        transform(read_image(content, "photograph", min_side=transform.min_side))
        done += 1
    return done / (time.process_time() - start)


def memory_of(name: str, image_size: int, precision: torch.dtype) -> tuple[int, int, int]:
    """(bytes of gradients, of the state that stays, of the activations of one image) of a model: float32 weights."""
    model = create_classifier(name)
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return gradients, state_bytes(model), activation_bytes(model, (3, image_size, image_size), precision)
