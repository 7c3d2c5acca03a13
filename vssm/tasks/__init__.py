"""Tasks: what a network is trained for. Heads, losses, metrics, transforms over any timm model; no trainer in here."""

from vssm._words import nearest
from vssm.tasks.classification.task import ClassificationTask
from vssm.tasks.detection.task import DetectionTask
from vssm.tasks.segmentation.task import SegmentationTask
from vssm.tasks.task import Task

__all__ = ["TASKS", "Task", "find_task"]

TASKS: dict[str, Task] = {
    "classification": ClassificationTask(),
    "detection": DetectionTask(),
    "segmentation": SegmentationTask(),
}


def find_task(name: str) -> Task:
    """Raises ValueError that names the tasks there are."""
    if name not in TASKS:
        raise ValueError(f"task is {name!r}; expected {' or '.join(TASKS)}{nearest(name, TASKS)}")
    return TASKS[name]
