"""vssm validate: loss and accuracy of a checkpoint on the validation images."""

from vssm.cli.parsing import UsageError
from vssm.cli.settings import parse_settings, settings_parser, to_settings

DESCRIPTION = """\
Measures a checkpoint on the images it was validated on, or on others: `vssm validate --checkpoint RUN_DIR
[--data.root FOLDER]`. Settings come from the checkpoint; options change them."""


def main(argv: list[str]) -> int:
    parser = settings_parser("validate", DESCRIPTION)
    parser.add_argument("--checkpoint", metavar="RUN_DIR|FILE", help="a run directory (its best.ckpt) or a checkpoint")
    asked = parse_settings(parser, argv)
    if asked is None:
        return 0
    if asked.checkpoint is None:
        raise UsageError("no checkpoint given: --checkpoint RUN_DIR or --checkpoint FILE")

    from rich.console import Console

    from vssm.cli.show import metrics_table
    from vssm.train.run_dir import checkpoint_file

    file = checkpoint_file(asked.checkpoint)
    console = Console()
    with console.status("loading torch and Lightning"):
        from vssm.train.checkpoint import read_checkpoint
        from vssm.train.fit import load_experiment, validate
    stored = read_checkpoint(file)
    changed = to_settings(parse_settings(parser, argv, stored.settings.as_dict()))
    experiment = load_experiment(stored, changed)
    console.print(metrics_table(validate(experiment)))
    return 0
