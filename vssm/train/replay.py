"""The step that a run skipped because it was not finite, computed again, with a look into every module."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vssm._limits import TRAINING_PRECISIONS
from vssm.data.padded import PaddedImages
from vssm.settings import Settings, TrainerSettings
from vssm.train.fit import build
from vssm.train.nonfinite import FORMAT, restore_generators, to_batch
from vssm.weights.errors import CheckpointError
from vssm.weights.read import read_content


@dataclass
class Replay:
    """What the step gave again.

    losses: of each batch of the step; `stored` are those of the training.
    first: the first value that was not finite, in the order of the computation; None when there was none.
    left_out: the parts of the training's loss that are not computed here.
    """

    step: int
    epoch: int
    reason: str
    stored: list[float]
    losses: list[float] = field(default_factory=list)
    first: str | None = None
    left_out: tuple[str, ...] = ()

    @property
    def reproduced(self) -> bool:
        """Whether the losses are the same, NaN being like NaN, and something was not finite again."""
        same = all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(self.stored, self.losses, strict=True))
        return same and self.first is not None


def replay(file: str | Path, device: str = "cpu") -> Replay:
    """Computes the batches of a nonfinite-STEP.pt forward and backward, with weights, buffers and generators of then.

    The images that the run was trained on have to be where they were, as for a resumed run. Raises CheckpointError when
    `file` is none of these, ValueError or OSError when its experiment cannot be built.
    """
    content = _read(Path(file))
    settings = Settings.from_stored(content["vssm"]["settings"])
    settings.model.compile = False
    found = Replay(content["step"], content["epoch"], content["reason"], content["losses"])
    found.left_out = tuple(
        name
        for name, used in (
            ("optim.mesa_weight", settings.optim.mesa_weight > 0),
            ("optim.distill_teacher", settings.optim.distill_teacher is not None),
        )
        if used
    )
    settings.optim.distill_teacher = None
    dtype: torch.dtype = getattr(torch, TRAINING_PRECISIONS[settings.trainer.precision])
    settings.trainer = TrainerSettings(accelerator="cpu", devices=1)
    module = build(settings, weights=False).module.to(device, torch.float64 if dtype is torch.float64 else None)
    module.load_state_dict(content["state_dict"])
    module.train()
    for number, stored in enumerate(content["batches"], 1):
        batch = to_batch(_moved(stored, torch.device(device)))
        restore_generators(stored, torch.device(device))
        where = f"batch {number} of {len(content['batches'])}: " if len(content["batches"]) > 1 else ""
        with ExitStack() as stack, _watched(module.task, found, where):  # type: ignore[arg-type]
            _note(found, batch.images, f"{where}the images themselves")
            if dtype.itemsize == 2:
                stack.enter_context(torch.autocast(device, dtype))
            loss, _ = module.task.training_step(module.laid_out(batch.images), batch.targets)
            _note(found, loss, f"{where}the loss")
            stack.close()
            found.losses.append(float(loss.detach()))
            (loss / len(content["batches"])).backward()
    return found


def _read(file: Path) -> dict[str, Any]:
    content = read_content(file)
    if not isinstance(content, dict) or content.get("format") != FORMAT or "batches" not in content:
        raise CheckpointError(f"{file} is no nonfinite-STEP.pt of a run directory of `vssm fit`")
    return content


class _watched:
    """While it lasts, the first module with an output, then the first parameter with a gradient, that is not finite."""

    def __init__(self, model: nn.Module, found: Replay, where: str):
        self.model, self.found, self.where = model, found, where
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        for name, module in self.model.named_modules():
            if name:
                self._handles.append(module.register_forward_hook(self._output_of(name)))
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                self._handles.append(parameter.register_post_accumulate_grad_hook(self._gradient_of(name)))

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _output_of(self, name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            _note(self.found, output, f"{self.where}the output of {name} ({type(module).__name__})")

        return look

    def _gradient_of(self, name: str) -> Any:
        owner = type(self.model.get_submodule(name.rpartition(".")[0])).__name__

        def look(parameter: Tensor) -> None:
            _note(self.found, parameter.grad, f"{self.where}the gradient of {name} ({owner})")

        return look


def _note(found: Replay, value: Any, what: str) -> None:
    if found.first is not None:
        return
    tensors = [tensor.detach() for tensor in _tensors(value) if tensor.is_floating_point()]
    bad = sum(int((~torch.isfinite(tensor)).sum()) for tensor in tensors)
    if bad:
        found.first = f"{what}, {bad} of {sum(tensor.numel() for tensor in tensors)} values"


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, PaddedImages):
        yield value.pixels
    elif isinstance(value, Mapping | list | tuple):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(entry)


def _moved(stored: Any, device: torch.device) -> Any:
    if isinstance(stored, Tensor):
        return stored.to(device)
    if isinstance(stored, dict):
        return {name: _moved(value, device) for name, value in stored.items()}
    return [_moved(value, device) for value in stored] if isinstance(stored, list) else stored
