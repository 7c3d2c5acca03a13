"""From annotations to COCO json: YOLO txt, Pascal VOC xml, LabelMe json, or COCO json itself."""

from pathlib import Path

from vssm.data.files import printable_name
from vssm.data.imagefolder import require_folder
from vssm.data.labels import coco, labelme, voc, yolo
from vssm.data.labels.annotated import Annotated

__all__ = ["FORMATS", "read_labels"]

FORMATS = ("yolo", "voc", "labelme", "coco")


def read_labels(source: Path, kind: str | None = None, origin: int | None = None) -> Annotated:
    """The images below `source`, a folder, a YOLO data.yaml or a COCO json, with their objects.

    kind: one of FORMATS; found from the files when not given
    origin: the coordinate of the first pixel in Pascal VOC's boxes; see `voc.read`

    Raises OSError; ValueError, naming file and line or entry, for a file that cannot be read, for labels that are no
    class, where no format or more than one is found, and where there are no images or no objects at all.
    """
    if source.is_file() and source.suffix in _FILES:
        kind = kind or _FILES[source.suffix]
    else:
        require_folder(source, "images and their annotations (YOLO txt, Pascal VOC xml, LabelMe or COCO json)")
    found = [kind] if kind else [name for name, holds in _HOLDS.items() if holds(source)]
    if not found:
        raise ValueError(
            f"{printable_name(source)} has no annotations that are known here; looked for data.yaml or classes.txt "
            "with labels/*.txt (YOLO), *.xml (Pascal VOC), *.json with shapes (LabelMe), "
            "annotations/instances_train.json or train/_annotations.coco.json "
            "(COCO; name a json of another name itself)"
        )
    if len(found) > 1:
        raise ValueError(
            f"{printable_name(source)} has annotations in more than one format: {', '.join(found)}; --format"
        )
    if found[0] == "voc":
        annotated = voc.read(source, origin)
    else:
        annotated = _READ[found[0]](source)
    if not any(image.objects for image in annotated.images):
        lost = "".join(f"\n  {line}" for line in annotated.lost.lines())
        raise ValueError(f"{printable_name(source)}: no object was found ({found[0]}){lost}")
    return annotated


_HOLDS = {"yolo": yolo.holds, "voc": voc.holds, "labelme": labelme.holds, "coco": coco.holds}
_READ = {"yolo": yolo.read, "labelme": labelme.read, "coco": coco.read}
_FILES = {".yaml": "yolo", ".yml": "yolo", ".json": "coco"}
