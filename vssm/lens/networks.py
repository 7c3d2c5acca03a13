"""Networks by what the page may name: one of our models, a checkpoint of the folder, an image size."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, RLock

import torch

from vssm._words import nearest
from vssm.analysis.scans import blocks
from vssm.data.preprocess import published_preprocess
from vssm.inference.checkpoint import is_ours, load_weights, read_checkpoint
from vssm.inference.predictor import Predictor
from vssm.lens.checkpoints import Checkpoints
from vssm.lens.refused import Refused
from vssm.tasks.classification import class_names, create_classifier

__all__ = ["SIZES", "Choice", "Network", "Networks"]

SIZES = (32, 512)  # least and largest side of the images, in pixels
RANDOM_SIZE = 224
KEPT = 3


@dataclass(frozen=True)
class Choice:
    """What the page names: a model, a checkpoint or None for random weights, a side in pixels or None for its own."""

    model: str
    checkpoint: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Network:
    """A network that is ready. `lock` is held while it runs: looking inside puts hooks on it."""

    predictor: Predictor
    blocks: tuple[str, ...]
    random: bool
    lock: RLock = field(default_factory=RLock)


class Networks:
    """The networks used last, at most KEPT of them."""

    def __init__(self, models: Sequence[str], checkpoints: Checkpoints):
        self.models, self.checkpoints = tuple(models), checkpoints
        self._kept: OrderedDict[Choice, Network] = OrderedDict()
        self._lock, self._loading = Lock(), Lock()

    def get(self, choice: Choice) -> Network:
        """Refused for a model or checkpoint that is not there, that does not fit, or that has no scan to look at."""
        found = self._find(choice)
        if found is not None:
            return found
        with self._loading:  # one at a time; another request may have loaded it meanwhile
            return self._find(choice) or self._keep(choice, self._load(choice))

    def _find(self, choice: Choice) -> Network | None:
        with self._lock:
            if choice in self._kept:
                self._kept.move_to_end(choice)
            return self._kept.get(choice)

    def _keep(self, choice: Choice, network: Network) -> Network:
        with self._lock:
            self._kept[choice] = network
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return network

    def _load(self, choice: Choice) -> Network:
        if choice.size is not None and not SIZES[0] <= choice.size <= SIZES[1]:
            raise Refused(f"the image size must be from {SIZES[0]} to {SIZES[1]}, got {choice.size}")
        if choice.checkpoint is not None:
            file = self.checkpoints.find(choice.checkpoint)
            predictor = _told_without_path(file, choice.checkpoint, lambda: self._trained(file, choice))
            size = choice.size
        else:
            self._check_model(choice.model)
            predictor, size = _untrained(choice.model), choice.size or RANDOM_SIZE
        if predictor.task.name != "classification":
            raise Refused(f"{choice.checkpoint} is of the task {predictor.task.name}; choose one of a classifier")
        try:
            predictor = predictor if size is None else predictor.at_size(size)
            names = tuple(blocks(predictor.model))
        except ValueError as error:
            raise Refused(str(error)) from error
        return Network(predictor, names, random=choice.checkpoint is None)

    def _trained(self, file: Path, choice: Choice) -> Predictor:
        if is_ours(file):
            return Predictor.of(read_checkpoint(file))
        self._check_model(choice.model)
        predictor = _untrained(choice.model)
        load_weights(predictor.model, file)
        return predictor

    def _check_model(self, name: str) -> None:
        if name not in self.models:
            raise Refused(f"unknown model {name!r}{nearest(name, self.models)}; choose one from the list")


def _untrained(name: str) -> Predictor:
    """Random weights, the same at every start."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_classifier(name).eval()
    return Predictor(name, model, published_preprocess(model), class_names(model))


def _told_without_path(file: Path, name: str, load: Callable[[], Predictor]) -> Predictor:
    """`load()`; what is wrong with the file is said under the name that the page knows."""
    try:
        return load()
    except Refused:
        raise
    except OSError as error:
        raise Refused(f"{name}: {error.strerror or 'it cannot be read'}") from error
    except ValueError as error:
        raise Refused(str(error).replace(str(file), name)) from error
