"""`python -m vssm`: the command `vssm`. Python imports the package for it first, which `vssm` itself puts off."""

import sys

from vssm_cli.command import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
