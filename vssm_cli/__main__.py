"""`python -m vssm_cli`: the command `vssm`, where its script is not on the path."""

import sys

from vssm_cli.command import main

sys.exit(main())
