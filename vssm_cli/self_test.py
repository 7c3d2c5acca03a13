"""vssm info --self-test: the lines, one for each operator, and the message about what is wrong."""

import math
import time

import torch
from rich.console import Console

from vssm.ops import dispatch
from vssm.ops.self_check import Result, tested
from vssm_cli.lines import print_line
from vssm_cli.parsing import Stop


def run(console: Console, device: torch.device) -> None:
    """Print what was found, operator by operator. Stop, with exit code 1, when anything is wrong."""
    began, found = time.perf_counter(), []
    width = max(map(len, dispatch.operators()))
    print_line(console, f"{'operator':<{width}}  calls  error    bound    dtype     result  paths", "bold")
    for operator, results in tested(device):
        found += results
        worst = max(results, key=lambda result: result.error / result.bound)
        calls = sum(result.cases for result in results)
        numbers = f"{calls:>5}  {worst.error:<7.1e}  {worst.bound:<7.0e}  {worst.dtype:<8}"
        line = f"{operator:<{width}}  {numbers}  {'ok' if worst.ok else 'WRONG':<6}  {_paths(results)}"
        print_line(console, line, "" if worst.ok else "red")
    wrong = [result for result in found if not result.ok]
    if wrong:
        raise Stop(message(found, wrong))
    calls = sum(result.cases for result in found)
    print_line(console, f"all right: {calls} calls, forward and backward, in {time.perf_counter() - began:.0f} s")


def _paths(results: list[Result]) -> str:
    """ "core avx512, core avx2, torch": those that are wrong alone, if any are."""
    wrong = [result for result in results if not result.ok]
    return ", ".join(dict.fromkeys(result.path for result in wrong or results))


def message(found: list[Result], wrong: list[Result]) -> str:
    """One line: the result that is furthest from right, what else is wrong, and what to do."""
    worst = max(wrong, key=lambda result: result.error / result.bound)
    said = f"relative error {worst.error:.1e}, at most {worst.bound:.0e} is rounding"
    if math.isinf(worst.error):
        said = "no finite result"
    instead = f"with vssm.ops.use({_remedy(found, wrong)!r}):"
    return (
        f"{worst.operator} is wrong on path {worst.path} in {worst.dtype}: {said}; "
        f"{worst.worst}{_others(worst, wrong)}. Do not rely on results of this path here: run your code within "
        f"`{instead}`. Please report this, with all that was printed above"
    )


def _others(worst: Result, wrong: list[Result]) -> str:
    """ "; also wrong: layer_norm, linear (core avx2, torch)": operators together that are wrong on the same paths."""
    paths: dict[str, dict[str, None]] = {}
    for result in wrong:
        if (result.operator, result.path) != (worst.operator, worst.path):
            paths.setdefault(result.operator, {})[result.path] = None
    operators: dict[str, list[str]] = {}
    for operator, those in paths.items():
        operators.setdefault(", ".join(those), []).append(operator)
    groups = [f"{', '.join(names)} ({those})" for those, names in operators.items()]
    return f"; also wrong: {', '.join(groups)}" if groups else ""


def _remedy(found: list[Result], wrong: list[Result]) -> str:
    """The fastest path without a fault, as far as is known. The reference is slow, and what all were compared with."""
    faulty = {result.path.split()[0] for result in wrong}
    tried = {result.path.split()[0] for result in found} | {"torch"}
    return next((path for path in ("core", "torch") if path in tried - faulty), "reference")
