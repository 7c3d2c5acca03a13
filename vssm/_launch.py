"""Whether Python is starting the command `vssm`. Standard library only."""

import sys
from itertools import pairwise
from pathlib import Path


def started_as_command() -> bool:
    """True in a process that runs `vssm ...` or `python -m vssm ...`.

    There the package's own `__init__` imports nothing, so that help and typing errors answer before torch is imported;
    each subcommand imports what it needs.
    """
    argv = getattr(sys, "argv", None) or [""]
    if argv[0] == "-m":  # Python is still looking for the module that -m names
        return ("-m", "vssm") in pairwise(sys.orig_argv)
    return Path(argv[0]).stem == "vssm" or Path(argv[0]).parts[-2:] == ("vssm", "__main__.py")
