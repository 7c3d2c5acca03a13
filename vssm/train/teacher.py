"""Another classifier as a teacher: which one, and how it takes the images of its student."""

import hashlib

import torch
from torch import Tensor, nn

from vssm._words import same_names
from vssm.data.preprocess import Preparation, published_preprocess
from vssm.inference.checkpoint import is_ours, load_weights
from vssm.inference.predictor import load_predictor
from vssm.inference.run_dir import checkpoint_file
from vssm.inference.subject import parse_source
from vssm.tasks.classification import check_image_size, create_classifier


class Teacher:
    """Answers to images that are normalised for another network: in evaluation mode, without gradients.

    model: (B, C, H, W) -> logits (B, K). own, students: how each of the two prepares its images.
    """

    def __init__(self, model: nn.Module, own: Preparation, students: Preparation):
        self.model = model.eval().requires_grad_(False)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (own.mean, own.std))
        student_mean, student_std = (torch.tensor(values).view(-1, 1, 1) for values in (students.mean, students.std))
        self.factor, self.shift = student_std / std, (student_mean - mean) / std

    def fingerprint(self) -> str:
        """Of its weights: a resumed run needs the very same."""
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> "Teacher":
        self.model = self.model.to(device)
        self.factor, self.shift = self.factor.to(device), self.shift.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return self.model(images * self.factor + self.shift)


def load_teacher(text: str, classes: tuple[str, ...], students: Preparation) -> Teacher:
    """From the name of a model (its published weights), NAME=FILE, a run directory or a checkpoint of `vssm fit`.

    Raises OSError or ValueError that names the setting when there is no such teacher, when it knows other classes than
    `classes`, or when it cannot take the images of its student: their channels and size.
    """
    try:
        name, model, own = _read(text, classes, students)
    except (OSError, ValueError) as error:
        raise ValueError(f"optim.distill_teacher: {error}") from error
    if own.channels != students.channels:
        raise ValueError(
            f"optim.distill_teacher: {name} takes images of {own.channels} channels, the images have "
            f"{students.channels}; name a teacher of as many"
        )
    check_image_size(model, f"optim.distill_teacher: {name}", students.input_size, len(classes))
    return Teacher(model, own, students)


def _read(text: str, classes: tuple[str, ...], students: Preparation) -> tuple[str, nn.Module, Preparation]:
    source = parse_source(text)
    if source.name is not None and source.weights is not None and not is_ours(source.weights):
        model = create_classifier(source.name, len(classes), students.channels)
        load_weights(model, checkpoint_file(source.weights))
        return source.name, model, published_preprocess(source.name)
    predictor = load_predictor(source.weights, source.name)
    if predictor.task.name != "classification":
        raise ValueError(f"{text} was trained for {predictor.task.name}; a teacher is a classifier")
    known = len(predictor.classes)
    if known != len(classes):
        raise ValueError(f"{text} knows {known} classes, the images are of {len(classes)}; name one of the same")
    if predictor.data is not None and not same_names(predictor.classes, classes):
        raise ValueError(f"{text} was trained on other classes, {predictor.classes[0]!r} for one")
    return predictor.name, predictor.model, predictor.preprocess
