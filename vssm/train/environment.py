"""Where a run was trained: versions, machine, time, state of the code. Written once at its start, as
environment.yaml."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from vssm._version import __version__


def environment() -> dict[str, str]:
    """Facts by name, in the order a reader wants them."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    machine = f"{describe_processor()}, {os.cpu_count()} threads, {platform.system()} {platform.machine()}"
    if accelerator is not None and accelerator.type == "cuda":
        machine = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}; {machine}"
    elif accelerator is not None:
        machine = f"{accelerator.type}; {machine}"
    versions = {"vssm": __version__} | {name: version(name) for name in ("torch", "timm", "lightning")}
    return {
        "started": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": machine,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items())
        + f", Python {platform.python_version()}",
    } | git_state(Path.cwd())


def git_state(folder: Path) -> dict[str, str]:
    """{"git": commit} of the repository that a folder is in, with "(changed)" when files differ from it; empty when it
    is in none, or git is not installed."""
    try:
        commit, changes = (
            subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=20).stdout
            for words in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git": commit.strip() + (" (changed)" if changes.strip() else "")}


def describe_processor() -> str:
    """The processor's own name; Linux has it only in /proc."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
