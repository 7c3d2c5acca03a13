"""Arrows between the layers point one way, and importing the package stays light."""

import ast
import subprocess
import sys
from pathlib import Path

from vssm_cli import LIGHT
from vssm_cli.command import COMMANDS

PACKAGE = Path(__file__).parents[1] / "vssm"
COMMAND = Path(__file__).parents[1] / "vssm_cli"

# What a layer may import, besides itself. A layer that is not listed may not exist.
ALLOWED = {
    "ops": set(),
    "nn": {"ops"},
    "weights": {"nn"},
    "models": {"ops", "nn", "weights"},
    "data": set(),
    "tasks": {"ops", "nn", "weights", "models", "data"},
    "integrations": {"weights", "tasks"},
    "analysis": {"ops", "nn", "weights", "models", "tasks", "data"},
    "inference": {"ops", "nn", "weights", "models", "tasks", "data", "export"},
    "hub": {"weights", "models", "tasks", "data", "inference"},
    "export": {"ops", "nn", "weights", "models", "tasks", "data", "analysis"},
    "train": {"ops", "nn", "weights", "models", "tasks", "data", "analysis", "inference"},
    "figures": {"data", "analysis", "inference"},
    "report": {"tasks", "data", "analysis", "inference", "figures"},
    "lens": {"models", "tasks", "data", "analysis", "inference", "figures"},
}
# What the command line needs to parse.
KNOWN = sys.stdlib_module_names | {"jsonargparse", "docstring_parser", "vssm", "vssm_cli"}
HEAVY = {"lightning", "matplotlib", "triton", "sklearn", "transformers", "jsonargparse", "torchmetrics", "rich", "onnx"}
HEAVY |= {"vssm.ops.self_check"}


def _layer(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def _imports(path):
    """(line, dotted name) of every import in a file, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def test_no_arrow_points_upwards():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        layer = _layer(path)
        if not layer:  # vssm/__init__.py and vssm/__main__.py put the layers together
            continue
        assert layer in ALLOWED, f"{path} is in a layer without rules; add it to ALLOWED"
        for line, name in _imports(path):
            parts = name.split(".")
            if parts[0] != "vssm" or len(parts) < 2 or not (PACKAGE / parts[1]).is_dir():
                continue
            if parts[1] != layer and parts[1] not in ALLOWED[layer]:
                wrong.append(f"{path.relative_to(PACKAGE)}:{line}: {layer} imports {parts[1]}")
    assert not wrong, "\n".join(wrong)


def test_nobody_imports_the_command_line():
    for path in PACKAGE.rglob("*.py"):
        if path.name != "__main__.py":
            assert not any(name.split(".")[0] == "vssm_cli" for _, name in _imports(path)), path


def test_the_command_line_parses_without_the_package():
    """At their top, the files that are imported before a command line is parsed take the standard library, the parser,
    each other, and the modules of the package that are loaded without it."""
    first = [COMMAND / f"{name.replace('-', '_')}.py" for name in (*COMMANDS, "command")]
    wrong, seen = [], set()
    while first:
        path = first.pop()
        seen.add(path)
        for line, name in _top_imports(path):
            head, _, rest = name.partition(".")
            if head == "vssm_cli":
                if rest and COMMAND / f"{rest}.py" not in seen:
                    first.append(COMMAND / f"{rest}.py")
            elif (head == "vssm" and rest not in LIGHT) or head not in KNOWN:
                wrong.append(f"{path.name}:{line}: {name}")
    assert {path.name for path in seen} >= {"parsing.py", "settings.py", "fit.py"}
    assert not wrong, "\n".join(wrong)


def test_light_modules_take_the_standard_library_and_each_other():
    """In this order: each is loaded when those before it are there."""
    for position, name in enumerate(LIGHT):
        before = {f"vssm.{other}" for other in LIGHT[:position]}
        for line, module in _top_imports(PACKAGE / f"{name}.py"):
            assert module in before or module.partition(".")[0] in sys.stdlib_module_names, (
                f"{name}.py:{line}: {module}"
            )


def _top_imports(path):
    """(line, module) of every import outside of functions and of `if TYPE_CHECKING`."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module


def test_operators_know_no_timm_and_no_torchvision():
    for path in (PACKAGE / "ops").rglob("*.py"):
        for line, name in _imports(path):
            assert name.split(".")[0] not in ("timm", "torchvision", "lightning"), f"{path}:{line} imports {name}"


def test_import_is_light():
    code = f"""
import sys, time, timm
before, start = set(sys.modules), time.process_time()
import vssm
seconds = time.process_time() - start
print(seconds, *(set(sys.modules) - before) & set({sorted(HEAVY)!r}))
"""
    fastest = float("inf")
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds, *heavy = run.stdout.split()
        assert not heavy
        fastest = min(fastest, float(seconds))
        if fastest < 0.3:
            break
    assert fastest < 0.6  # 0.1 s of the processor on an idle machine; the bound leaves room for a busy one
