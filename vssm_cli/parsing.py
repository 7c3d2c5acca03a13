"""What every subcommand's parser shares: errors of one line with the nearest right word."""

import argparse
import sys
from typing import NoReturn

from vssm._ranks import is_first_process, rank
from vssm._words import nearest


class UsageError(Exception):
    """A usage error; printed as one line, exit code 2."""


class Stop(Exception):
    """The command ends early with a message that is complete, for example with how to resume; an empty one where
    another process prints it."""

    def __init__(self, message: str, exit_code: int = 1):
        super().__init__(message)
        self.exit_code = exit_code


def print_error(message: str) -> None:
    number = rank()
    where = f" in process {number}" if number > 0 else ""
    print(f"vssm: error{where}: {message}", file=sys.stderr)


def print_usage_error(message: str) -> None:
    """What is wrong with the command line is so in every process of a training: the first one prints it."""
    if is_first_process():
        print_error(message)


def describe(error: Exception) -> str:
    """One line: of a system's error the file and the reason, of others their message."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


class Parser(argparse.ArgumentParser):
    """argparse that raises UsageError instead of printing its usage and leaving."""

    def __init__(self, command: str, description: str, **options):
        super().__init__(prog=f"vssm {command}", description=description, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            unknown = message.removeprefix(prefix).split()[0]
            known = [option for action in self._actions for option in action.option_strings]
            message = f"unknown argument {unknown}{nearest(unknown, known)}"
        raise UsageError(f"{message} (`{self.prog} --help` explains)")


def parse(parser: Parser, argv: list[str]) -> argparse.Namespace | None:
    """The parsed arguments, or None when help was asked for and printed."""
    try:
        return parser.parse_args(argv)
    except SystemExit as leave:
        if leave.code:
            raise
        return None
