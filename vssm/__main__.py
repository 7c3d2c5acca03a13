"""The command `vssm`, and `python -m vssm`. Nothing heavy is imported here: see vssm/cli/command.py."""

import sys

from vssm.cli.command import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
