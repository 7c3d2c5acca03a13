"""vssm validate: loss and accuracy of a checkpoint on the validation images; what `vssm test` shares with it."""

import json

from vssm.cli.parsing import UsageError
from vssm.cli.settings import parse_settings, settings_parser, to_settings

DESCRIPTION = """\
Measures a checkpoint on the images it was validated on, or on others: `vssm validate --checkpoint RUN_DIR
[--data.root FOLDER]`. Settings come from the checkpoint; options change them."""


def main(argv: list[str]) -> int:
    return measure("validate", DESCRIPTION, "val", argv)


def measure(command: str, description: str, split: str, argv: list[str]) -> int:
    """The whole command: judges a checkpoint on the images of `split`, prints loss, top-1 and top-5."""
    parser = settings_parser(command, description)
    parser.add_argument("--checkpoint", metavar="RUN_DIR|FILE", help="a run directory (its best.ckpt) or a checkpoint")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of the table")
    asked = parse_settings(parser, argv)
    if asked is None:
        return 0
    if asked.checkpoint is None:
        raise UsageError("no checkpoint given: --checkpoint RUN_DIR or --checkpoint FILE")

    from rich.console import Console

    from vssm.cli.show import metrics_table, plain_metrics
    from vssm.train.run_dir import checkpoint_file

    file = checkpoint_file(asked.checkpoint)
    console = Console(stderr=asked.json)
    with console.status("loading torch and Lightning"):
        from vssm.train.checkpoint import read_checkpoint
        from vssm.train.fit import load_experiment, validate
    stored = read_checkpoint(file)
    defaults = stored.settings.as_dict()
    defaults["trainer"]["limit_val_batches"] = None  # kept the training short; a measurement takes all images
    changed = to_settings(parse_settings(parser, argv, defaults))
    experiment = load_experiment(stored, changed, split)
    for note in experiment.splits.notes:
        console.print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)
    metrics = validate(experiment)
    if asked.json:
        print(json.dumps({"checkpoint": str(file), "split": split, **plain_metrics(metrics)}))
    else:
        console.print(metrics_table(metrics))
    return 0
