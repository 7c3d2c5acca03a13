"""vssm fit: train, or continue a run."""

from vssm.cli.parsing import Stop, UsageError
from vssm.cli.settings import parse_settings, settings_parser, to_settings

DESCRIPTION = """\
Trains a model on images: `vssm fit --model vmamba_tiny --data.root FOLDER` where FOLDER holds train/CLASS/ and
val/CLASS/, or CLASS/ alone: then a share of each class validates. `vssm fit --config digits` is a first try. Any timm
model name will do. The run directory gets config.yaml, metrics.csv, checkpoints/last.ckpt and best.ckpt, and
report.html; `vssm fit --resume RUN_DIR` continues it exactly."""


def main(argv: list[str]) -> int:
    parser = settings_parser("fit", DESCRIPTION)
    parser.add_argument("--resume", metavar="RUN_DIR", help="continue this run; takes no other option")
    parsed = parse_settings(parser, argv)
    if parsed is None:
        return 0
    if parsed.resume is not None:
        others = [word for word in argv if word.startswith("--") and not word.startswith("--resume")]
        if others:
            raise UsageError(
                f"--resume continues a run with its own settings and takes no other option, not {others[0]}"
            )
        return _resume(parsed.resume)
    settings = to_settings(parsed)
    if settings.data.name is None:
        raise UsageError("no images given: --data.root FOLDER (with CLASS/IMAGE in it), or --data digits")
    return _start(settings)


def _start(settings) -> int:
    from rich.console import Console

    from vssm.train.run_dir import RunDir, free_path, is_first_process

    console = Console(quiet=not is_first_process())
    if settings.out is None:
        settings.out = str(free_path(f"runs/{settings.model.name}-{settings.data.name}"))
    if is_first_process():
        RunDir(settings.out).check_free()
    with console.status("loading torch and Lightning"):
        from vssm.train.fit import build, start_run
    experiment = build(settings)
    return _train(experiment, start_run(settings), False, console)


def _resume(path: str) -> int:
    from rich.console import Console

    from vssm.train.run_dir import RunDir, is_first_process
    from vssm.train.settings import Settings

    run = RunDir.reopen(path) if is_first_process() else RunDir(path)
    settings = Settings.from_dict(run.read_config())
    console = Console(quiet=not is_first_process())
    with console.status("loading torch and Lightning"):
        from vssm.train.fit import build
    return _train(build(settings, weights=False), run, True, console)


def _train(experiment, run, resume: bool, console) -> int:
    from vssm.cli.show import announce, device_of, metrics_table
    from vssm.train.fit import fit
    from vssm.train.progress import LiveProgress
    from vssm.train.run_dir import is_first_process
    from vssm.train.unreadable import read_unreadable

    announce(console, experiment)
    console.print(f"[bold]{'run':<10}[/]{run.path}", soft_wrap=True, highlight=False)
    try:
        metrics = fit(experiment, run, resume, [LiveProgress(console)])
    except KeyboardInterrupt:
        console.show_cursor()
        if run.last.exists():
            raise Stop(f"interrupted; continue with: vssm fit --resume {run.path}", 130) from None
        raise Stop(f"interrupted before the first checkpoint; {run.path} can be removed", 130) from None
    finally:
        run.close()
    if not metrics:
        console.print(f"{run.path} was already complete; nothing to do")
        return 0
    console.print(metrics_table(metrics))
    if run.unreadable.exists():
        unreadable = len(read_unreadable(run.unreadable))
        console.print(f"{unreadable} images could not be read: {run.unreadable}", soft_wrap=True, highlight=False)
    if is_first_process():
        _report(run, device_of(experiment.settings.trainer.accelerator), console)
    console.print(f"run directory {run.path}; next: vssm predict IMAGE --checkpoint {run.path}", soft_wrap=True)
    return 0


def _report(run, device: str, console) -> None:
    """Writes report.html. The training is done and saved by then: what goes wrong here is said, not raised."""
    with console.status("judging the best checkpoint"):
        from vssm.report.write import write_report

        try:
            write_report([run.path], run.report, device)
        except (OSError, ValueError) as error:
            console.print(f"no report: {error}; try again with: vssm report {run.path}", soft_wrap=True, markup=False)
            return
    console.print(f"report {run.report}", soft_wrap=True, highlight=False, markup=False)
