"""Arrows between the layers point one way, and importing the package stays light."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "vssm"

# What a layer may import, besides itself. A layer that is not listed may not exist.
ALLOWED = {
    "ops": set(),
    "nn": {"ops"},
    "weights": set(),
    "models": {"ops", "nn", "weights"},
    "data": set(),
    "tasks": {"ops", "nn", "weights", "models", "data"},
    "analysis": {"ops", "nn", "weights", "models", "tasks", "data"},
    "inference": {"ops", "nn", "weights", "models", "tasks", "data"},
    "train": {"ops", "nn", "weights", "models", "tasks", "data", "analysis", "inference"},
    "figures": {"data", "tasks", "analysis", "inference", "train"},
    "report": {"tasks", "data", "analysis", "inference", "figures"},
    "cli": {"ops", "nn", "models", "weights", "data", "tasks", "analysis", "inference", "train", "report"}
    | {"recipes", "figures"},
}
HEAVY = {"lightning", "matplotlib", "triton", "sklearn", "transformers", "jsonargparse", "torchmetrics", "rich", "onnx"}


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
