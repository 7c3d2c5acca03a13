"""vssm validate: loss and accuracy of a checkpoint on the validation images; what `vssm test` shares with it."""

import json
from math import isnan

from vssm_cli.parsing import UsageError
from vssm_cli.settings import parse_settings, settings_parser, to_settings

DESCRIPTION = """\
Measures a checkpoint on the images it was validated on, or on others: `vssm validate --checkpoint RUN_DIR
[--data.root FOLDER]`. Settings come from the checkpoint; options change them."""


def main(argv: list[str]) -> int:
    return measure("validate", DESCRIPTION, "val", argv)


def measure(command: str, description: str, split: str, argv: list[str]) -> int:
    """The whole command: evaluates a checkpoint on the images of `split`, prints loss, top-1 and top-5."""
    parser = settings_parser(command, description)
    parser.add_argument("--checkpoint", metavar="RUN_DIR|FILE", help="a run directory (its best.ckpt) or a checkpoint")
    parser.add_argument(
        "--results",
        metavar="FILE",
        help="write what was found to a json: objects in COCO's format (detection), or the confusion matrix "
        "(segmentation); with the same option an interrupted evaluation goes on where it stopped",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of the table")
    asked = parse_settings(parser, argv)
    if asked is None:
        return 0
    if asked.checkpoint is None:
        raise UsageError("no checkpoint given: --checkpoint RUN_DIR or --checkpoint FILE")

    from rich.console import Console

    from vssm.inference.run_dir import checkpoint_file
    from vssm_cli.lines import print_note
    from vssm_cli.show import class_table, metrics_table, plain_metrics

    file = checkpoint_file(asked.checkpoint)
    console = Console(stderr=asked.json)
    with console.status("loading torch"):
        from vssm.inference.checkpoint import read_checkpoint
        from vssm.inference.device import accelerator_device
        from vssm.inference.predictor import Predictor
    stored = read_checkpoint(file)
    defaults = stored.settings.as_dict()
    defaults["trainer"] |= {"limit_val_batches": None, "devices": 1}  # all images, and one device evaluates them
    changed = to_settings(parse_settings(parser, argv, defaults))
    if changed.trainer.devices not in (1, "1", "auto"):
        raise UsageError(f"vssm {command} evaluates on one device; leave out --devices {changed.trainer.devices}")
    device = accelerator_device(changed.trainer.accelerator)
    predictor = Predictor.of(stored.changed(changed)).to(device)
    evaluation = predictor.evaluate(
        split=split,
        limit_batches=changed.trainer.limit_val_batches,
        precision=changed.trainer.precision,
        details=0,
        results=asked.results,
    )
    for note in evaluation.notes:
        print_note(console, note)
    metrics = evaluation.metrics()
    if asked.json:
        found = {"checkpoint": str(file), "split": split, **plain_metrics(metrics)}
        figures = evaluation.quality.by_class()
        if figures:
            rows = zip(predictor.classes, zip(*figures.values(), strict=True), strict=True)
            names = [heading.removeprefix("%") for heading in figures]
            found["classes"] = {
                name: dict(zip(names, (None if isnan(value) else value for value in values), strict=True))
                for name, values in rows
            }
        print(json.dumps(found))
    else:
        console.print(metrics_table(metrics, predictor.task.headings))
        figures = evaluation.quality.by_class()
        if figures:
            console.print(class_table(predictor.classes, figures))
    return 0
