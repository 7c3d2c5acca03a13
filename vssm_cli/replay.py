"""vssm replay: a step that was skipped in a training because it was not finite, once more."""

from pathlib import Path

from vssm_cli.parsing import Parser, parse

DESCRIPTION = """\
Computes a step again that `vssm fit` skipped because its loss or gradients were NaN or infinite, from the file that it
left in the run directory, and names the first module whose output (or parameter whose gradient) is not finite. The
images have to be where they were. Exit code 1 when the step gives something else than in the training."""


def main(argv: list[str]) -> int:
    parser = Parser("replay", DESCRIPTION)
    parser.add_argument("file", type=Path, metavar="FILE", help="nonfinite-STEP.pt of a run directory")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...: that of the training (default cpu)")
    args = parse(parser, argv)
    if args is None:
        return 0

    from rich.console import Console

    console = Console()
    with console.status("loading torch and Lightning"):
        from vssm.train.replay import replay
        from vssm_cli.lines import print_line, print_note

        found = replay(args.file, args.device)
    for name in found.left_out:
        print_note(console, f"the part of the loss that {name} adds is left out")
    print_line(console, f"step {found.step}, epoch {found.epoch}: {found.reason}")
    print_line(console, f"losses of the training {_listed(found.stored)}, now {_listed(found.losses)}")
    print_line(console, f"first not finite: {found.first or 'nothing'}")
    if not found.reproduced:
        print_line(console, "this is not what the training had: it may have run on another device or version")
    return 0 if found.reproduced else 1


def _listed(losses: list[float]) -> str:
    return ", ".join(f"{loss:.6g}" for loss in losses)
