"""Lines come out as they are: not folded, not coloured, brackets in a path are no markup."""

import io
import time

import pytest
from rich.console import Console

from vssm_cli.lines import print_fact, print_line, print_note, print_speed

PATH = "runs/[bold]x[/]/" + "long/" * 40 + "[1]"


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=40)


def test_nothing_is_folded_or_taken_for_markup(console):
    print_line(console, PATH)
    print_note(console, PATH)
    print_fact(console, "run", PATH)
    assert console.file.getvalue().splitlines() == [PATH, f"note: {PATH}", f"run       {PATH}"]


@pytest.mark.parametrize(("failed", "middle"), [(0, ""), (2, ", 2 of 5 files could not be read")])
def test_speed(console, monkeypatch, failed, middle):
    monkeypatch.setattr(time, "perf_counter", lambda: 12.0)
    print_speed(console, "3 images", failed, 5, began=10.0)
    assert console.file.getvalue() == f"3 images{middle}, 2.5 images/s\n"
