"""vssm fit: train, or continue a run."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any, NoReturn

from vssm._ranks import is_first_process, launched_together
from vssm_cli.parsing import Stop, UsageError, describe
from vssm_cli.settings import SHORT, parse_settings, read_settings, settings_parser, to_settings

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: start it again with --resume

DESCRIPTION = """\
Trains a model on images: `vssm fit --model vmamba_tiny --data.root FOLDER` where FOLDER holds train/CLASS/ and
val/CLASS/, or CLASS/ alone: then a share of each class validates. FOLDER may also be what `vssm pack` wrote.
`vssm fit --config digits` is a first try. Any timm model name will do. The run directory gets config.yaml, metrics.csv,
checkpoints/last.ckpt and best.ckpt, and report.html; `vssm fit --resume RUN_DIR` continues it exactly."""


def main(argv: list[str]) -> int:
    parser = settings_parser("fit", DESCRIPTION)
    parser.add_argument(
        "--resume",
        metavar="RUN_DIR",
        help="continue this run; takes no other option, except where it goes on: --devices, --accelerator, "
        "--trainer.num_nodes, --trainer.strategy, --trainer.sharded_checkpoints",
    )
    parsed = parse_settings(parser, argv)
    if parsed is None:
        return 0
    if parsed.resume is not None:
        where = _where(argv)
        with _signals_end():
            return _resume(parsed.resume, {name: parsed[f"trainer.{name}"] for name in where})
    settings = to_settings(parsed)
    if settings.data.name is None:
        classes = settings.task == "classification"
        remedy = " (with CLASS/IMAGE in it), --data.train SHARDS, or --data digits" if classes else ""
        raise UsageError(f"no images given: --data.root FOLDER{remedy}")
    with _signals_end():
        return _start(settings)


def _start(settings) -> int:
    from rich.console import Console

    with Console(stderr=True, quiet=not is_first_process()).status("loading torch and Lightning"):
        from vssm.inference.run_dir import RunDir, default_path

        if settings.out is None:
            settings.out = str(default_path(f"runs/{settings.model.name}-{settings.data.name}"))
        if is_first_process():
            RunDir(settings.out).check_free()
        from vssm.train.fit import build, start_run
    console = Console(quiet=not is_first_process())
    experiment = build(settings)
    return _train(experiment, start_run(settings), False, console)


def _where(argv: list[str]) -> list[str]:
    """The settings of a run that may change when it goes on, those of where it runs, as far as they are given."""
    found = []
    for word in argv:
        option = word.partition("=")[0]
        if not option.startswith("--") or option == "--resume":
            continue
        name = SHORT.get(option, option).removeprefix("--trainer.").replace("-", "_")
        if name not in ("accelerator", "devices", "num_nodes", "strategy", "sharded_checkpoints"):
            raise UsageError(
                "--resume continues a run with its own settings and takes no other option except --devices, "
                "--accelerator, --trainer.num_nodes, --trainer.strategy and --trainer.sharded_checkpoints, "
                f"not {option}"
            )
        found.append(name)
    return found


def _resume(path: str, where: dict[str, Any]) -> int:
    from rich.console import Console

    with Console(stderr=True, quiet=not is_first_process()).status("loading torch and Lightning"):
        from vssm.inference.run_dir import RunDir

        run = RunDir.reopen(path) if is_first_process() else RunDir(path)
        try:
            settings = read_settings(run.config, settings_parser("fit", DESCRIPTION))
            settings.keep_earlier(run.read_config())
        except UsageError as error:
            versions = run.read_environment().get("versions", "versions that it does not name")
            raise Stop(
                f"{error}. The run was written by {versions}: resume with that version, or start a new run"
            ) from None
        for name, value in where.items():
            setattr(settings.trainer, name, value)
        from vssm.train.fit import build_resumed
    console = Console(quiet=not is_first_process())
    return _train(build_resumed(settings, run), run, True, console)


def _train(experiment, run, resume: bool, console) -> int:
    from vssm.data.unreadable import TooManyUnreadable, read_unreadable
    from vssm.train.fit import WorkerDied, fit
    from vssm.train.preemption import Preempted
    from vssm.train.progress import LiveProgress
    from vssm.train.stopping import Diverged
    from vssm_cli.lines import print_fact, print_line
    from vssm_cli.show import announce, device_of, metrics_table

    announce(console, experiment)
    print_fact(console, "run", str(run.path))
    try:
        metrics = fit(experiment, run, resume, [LiveProgress(console, metrics=experiment.task.columns)])
    except KeyboardInterrupt:
        console.show_cursor()
        raise Stop(_with_remedy("interrupted", run), 130) from None
    except Preempted as error:
        console.show_cursor()
        raise _stop_together(_with_remedy(str(error), run), REQUEUE) from error
    except (OSError, WorkerDied) as error:
        raise Stop(_with_remedy(describe(error), run)) from error
    except Diverged as error:  # a resumed run would repeat it to the last bit
        kept = f"; {run.last} is unchanged; start a new run from it with --init-from" if run.last.exists() else ""
        raise _stop_together(f"{error}{kept}") from error
    except TooManyUnreadable as error:
        raise _stop_together(str(error)) from error
    finally:
        run.close()
    if resume and not metrics:
        print_line(console, f"{run.path} was already complete; nothing to do")
        return 0
    if metrics:  # none when the last step came before the first validation
        console.print(metrics_table(metrics, experiment.task.headings))
    if run.unreadable.exists():
        unreadable = len(read_unreadable(run.unreadable))
        print_line(console, f"{unreadable} images could not be read: {run.unreadable}")
    if is_first_process():
        _report(run, device_of(experiment.settings.trainer.accelerator), console)
    if is_first_process():
        _curves(run, console)
    print_line(console, f"run directory {run.path}; next: vssm predict IMAGE --checkpoint {run.path}")
    return 0


def _stop_together(message: str, exit_code: int = 1) -> Stop:
    """Where all processes of a training stop for one reason: the first tells it. Lightning kills the first when one of
    those that it started fails, so they end without an error."""
    if is_first_process():
        return Stop(message, exit_code)
    return Stop("", exit_code if launched_together() else 0)


def _with_remedy(what: str, run) -> str:
    """What happened, and what can be done with the run."""
    if run.last.exists():
        return f"{what}; the last checkpoint is intact, continue with: vssm fit --resume {run.path}"
    return f"{what}; there is no checkpoint yet, begin again with: vssm fit --resume {run.path}"


@contextlib.contextmanager
def _signals_end() -> Iterator[None]:
    """Outside of the training, which saves first, SIGTERM and SIGUSR1 end the command at once."""
    received: list[int] = []

    def interrupt(number: int, frame: object) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt

    numbers = [signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    except (KeyboardInterrupt, Stop) as error:
        if not received:
            raise
        raise Stop(str(error) or f"stopped by {signal.Signals(received[0]).name}", REQUEUE) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _curves(run, console) -> None:
    """Writes curves.png; an error is printed, as that of the report."""
    from vssm.figures.curves import draw
    from vssm.report.runs import read_run
    from vssm_cli.lines import print_line

    try:
        found = read_run(run.path)
        draw([found.curves(run.path.name)], found.score.removeprefix("val_"), run.curves)
    except (OSError, ValueError) as error:
        print_line(console, f"no learning curves: {error}; try again with: vssm runs {run.path} --plot {run.curves}")


def _report(run, device: str, console) -> None:
    """Writes report.html. The training is done and saved by then: an error here is printed, not raised."""
    with console.status("evaluating the best checkpoint"):
        from vssm.report.write import write_report
        from vssm_cli.lines import print_line

        try:
            write_report([run.path], run.report, device)
        except (OSError, ValueError) as error:
            print_line(console, f"no report: {error}; try again with: vssm report {run.path}")
            return
    print_line(console, f"report {run.report}")
