"""The table of subcommands, and what becomes of an error.

A subcommand is a module of this folder with `main(argv) -> exit code`. It parses its arguments first and imports
torch, timm and Lightning only afterwards, so that help and typing errors answer at once.
Exit codes: 0 done; 1 the command could not do it (one message, no traceback); 2 a usage error; 75 (fit) stopped by
SIGTERM or SIGUSR1, to be started again with --resume; 130 Ctrl-C;
141 the reader of the output went away.
"""

import atexit
import contextlib
import gc
import importlib
import os
import sys
import warnings
from collections.abc import Iterator

from vssm._version import __version__
from vssm_cli.parsing import Stop, UsageError, describe, nearest, print_error, print_usage_error

COMMANDS = {
    "check": "find damaged, duplicate and misplaced images before a training",
    "labels": "convert annotations of YOLO, Pascal VOC, LabelMe or COCO to COCO json, and cut large images into tiles",
    "pack": "pack a folder of images into tar shards, for disks and servers far away",
    "make-shapes": "generate images of textured shapes with boxes, masks and classes, to try things on",
    "fit": "train a model on a folder of images, or on the bundled digits",
    "plan": "estimate time, memory and input of a training on several devices",
    "validate": "evaluate a checkpoint on the validation images",
    "test": "evaluate a checkpoint on test images",
    "report": "write one page on how good runs are and where they fail",
    "runs": "list and compare runs, draw their learning curves",
    "replay": "compute a skipped step again, and name the first module that is not finite",
    "predict": "classify an image, or a folder of images",
    "lens": "look inside models on a local web page",
    "models": "list the models by name and size",
    "table": "show a table of the papers next to what is counted and measured here",
    "resolution": "measure a classifier on larger images than it was trained on",
    "erf": "draw how much of the image models see: effective receptive fields",
    "activation": "draw what a patch takes from the others: activation maps of scans",
    "states": "draw the hidden states of a scan, before and after fusion, and how far they remember",
    "matrix": "draw the scan of a block as a matrix, as attention has one",
    "complexity": "count a model's parameters and multiply-adds by operator",
    "export": "write a model as ONNX or .pt2, for runtimes without vssm",
    "push": "upload a trained classifier to the Hugging Face Hub, with a model card",
    "weights": "list the weights that the authors publish, and download them",
    "convert": "turn an official checkpoint into .safetensors under our names",
    "recipes": "list the training recipes for `vssm fit --config`",
    "info": "show which device, core library and kernels run here, and why",
    "demo": "train two small models on handwritten digits, in minutes on two cores",
}

HELP_FLAGS = ("-h", "--help", "help")
OPTIONS = ("--help", "--version", "--debug")


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand and returns the exit code; `--debug` anywhere keeps the traceback of an error."""
    atexit.register(_leave_quickly)
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        with _plain_warnings(unless=debug):
            return _dispatch(arguments)
    except UsageError as error:
        print_usage_error(str(error))
        return 2
    except Stop as stop:
        if str(stop):
            print_error(str(stop))
        return stop.exit_code
    except BrokenPipeError:
        # Whoever read our output, `head` perhaps, has enough. What Python flushes at its end must not fail again.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print_error("interrupted")
        return 130
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get((error.name or "").partition(".")[0])
        if debug or extra is None:
            raise
        print_error(f"this command needs {error.name}, which is not installed: pip install 'vssm[{extra}]'")
        return 1
    except (OSError, ValueError, RuntimeError) as error:
        # What a user can cause is raised as OSError, ValueError or an error class of ours, with its remedy in the
        # message. The rest is a bug and shows its traceback.
        ours = not isinstance(error, RuntimeError) or type(error).__module__.startswith("vssm.")
        if debug or not ours:
            raise
        print_error(describe(error))
        return 1


def _leave_quickly() -> None:
    """One last collection in the place of the several with which Python ends: over the half million objects of torch,
    timm and Lightning they take more than a second."""
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def _plain_warnings(unless: bool) -> Iterator[None]:
    """A warning is one line for the user, without the file and the source line that raised it.

    Pillow's are left out: they name no file, and what cannot be read is an error of its own.
    """
    if unless:
        yield
        return
    before = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.formatwarning = lambda message, *_, **__: f"vssm: note: {str(message).removeprefix('vssm: ')}\n"
        try:
            yield
        finally:
            warnings.formatwarning = before


_EXTRA_OF: dict[str, str] = dict.fromkeys(
    (
        "lightning",
        "jsonargparse",
        "docstring_parser",
        "yaml",
        "torchmetrics",
        "rich",
        "matplotlib",
        "sklearn",
        "hotcoco",
    ),
    "train",
) | {"av": "video", "starlette": "lens", "uvicorn": "lens", "fsspec": "remote", "datasets": "parquet"}


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in HELP_FLAGS:
        print(help_text())
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        print(f"vssm {__version__}")
        return 0
    if name not in COMMANDS:
        kind, known = ("option", OPTIONS) if name.startswith("-") else ("command", COMMANDS)
        raise UsageError(f"vssm has no {kind} {name!r}{nearest(name, known)} (`vssm --help` lists all)")
    return importlib.import_module(f"vssm_cli.{name.replace('-', '_')}").main(rest)


def help_text() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: vssm COMMAND ...",
            "",
            "Visual state space models: train them, evaluate them, use them.",
            "",
            "commands:",
            *lines,
            "",
            "options:",
            "  --version  print the version",
            "  --debug    with any command: show the traceback of an error",
            "",
            "`vssm COMMAND --help` explains one command. A first try: vssm demo",
        ]
    )
