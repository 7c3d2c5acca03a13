"""Compile the C++ core at install time.

`csrc/kernels/*.cpp` is compiled once per instruction set and `csrc/*.cpp` once, all linked into
`vssm/lib/libvssm_core.*`. The library has a plain C interface and touches neither Python nor torch headers, so one
build serves every Python and every torch. Without a compiler the install still succeeds: a warning, a pure wheel,
and the package runs on its plain-torch path.

`VSSM_BUILD=require` turns a failed build into an error, `VSSM_BUILD=skip` does not try; `CXX` names the compiler.
Run directly (`python hatch_build.py`) to rebuild in place.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ModuleNotFoundError:  # run directly, outside a build
    BuildHookInterface = object

ROOT = Path(__file__).resolve().parent
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
FLAGS += ["-fno-exceptions", "-fno-rtti", "-Wall", "-Wno-psabi"]
X86_VARIANTS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mavx2", "-mfma", "-mprefer-vector-width=512"],
}
LIBRARY = {"darwin": "libvssm_core.dylib", "win32": "vssm_core.dll"}.get(sys.platform, "libvssm_core.so")


class BuildFailed(RuntimeError):
    """The core could not be compiled; the message says why and what to do."""


def source_hash(csrc: Path) -> str:
    """Identifies the sources of a build; the same rule as in vssm/ops/native.py."""
    digest = hashlib.sha256()
    for path in sorted(csrc.rglob("*")):
        if path.suffix in (".h", ".cpp"):
            digest.update(path.relative_to(csrc).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def find_compiler() -> list[str]:
    """$CXX, or the first usual C++ compiler on the path."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    names = ["clang++"] if sys.platform == "win32" else ["c++", "g++", "clang++"]
    for name in names:
        if shutil.which(name):
            return [name]
    raise BuildFailed(f"no C++ compiler found (tried {', '.join(names)}); install one or set CXX")


def target_machine() -> str:
    """The architecture to build for: that of this Python, which cross builds and macOS's universal Pythons change.

    sysconfig honours _PYTHON_HOST_PLATFORM, by which cibuildwheel asks for another one than this machine's.
    """
    named = sysconfig.get_platform().rpartition("-")[2].lower()
    return platform.machine().lower() if named in ("universal2", "") else named


def variants() -> dict[str, list[str]]:
    """Instruction sets of the architecture to build for, with their compiler flags."""
    machine = target_machine()
    if machine in ("x86_64", "amd64"):
        return X86_VARIANTS
    return {"neon": []} if machine in ("arm64", "aarch64") else {"generic": []}


def build(root: Path = ROOT) -> Path:
    """Compile csrc/ into vssm/lib; the finished library replaces the old one in one step."""
    csrc, out = root / "csrc", root / "vssm" / "lib" / LIBRARY
    compiler = find_compiler()
    version = _run([*compiler, "--version"])
    flags = list(FLAGS)
    if sys.platform != "win32":
        flags += ["-fPIC", "-fvisibility=hidden"]
    if sys.platform == "darwin":  # the oldest macOS and the architecture that the wheel's tag promises
        flags += ["-arch", target_machine(), f"-mmacosx-version-min={sysconfig.get_platform().split('-')[1]}"]
    targets = variants()
    if targets is X86_VARIANTS:
        flags.append("-DVSSM_X86")
    stamp = source_hash(csrc)

    # An object is named by all that decides its content, so an unchanged file is not compiled again.
    cache = root / "build" / "core"
    cache.mkdir(parents=True, exist_ok=True)
    jobs: list[tuple[list[str], Path]] = []
    for source in sorted(csrc.glob("*.cpp")):
        command = [*compiler, *flags, f"-DVSSM_ISA={next(iter(targets))}", f"-DVSSM_BUILD={stamp}"]
        jobs.append(_job(command, version, source, cache / source.stem))
    for source in sorted(csrc.glob("kernels/*.cpp")):
        for name, extra in targets.items():
            command = [*compiler, *flags, f"-DVSSM_ISA={name}", *extra]
            jobs.append(_job(command, version, source, cache / f"{source.stem}.{name}"))
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(_compile, jobs))

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".build-") as scratch:
        linked = Path(scratch) / LIBRARY
        arch = ["-arch", target_machine()] if sys.platform == "darwin" else []
        _run([*compiler, *arch, "-shared", "-o", str(linked), *(str(target) for _, target in jobs)])
        linked.replace(out)
    return out


def _job(command: list[str], version: str, source: Path, target: Path) -> tuple[list[str], Path]:
    key = hashlib.sha256("\0".join([*command, version]).encode())
    for path in sorted(_includes(source, set())):
        key.update(path.read_bytes())
    return [*command, "-c", str(source)], target.with_name(f"{target.name}.{key.hexdigest()[:16]}.o")


def _includes(path: Path, seen: set[Path]) -> set[Path]:
    """The file and what it includes with quotes, directly or not."""
    if path not in seen:
        seen.add(path)
        for name in re.findall(r'^#include "(.+)"', path.read_text(encoding="utf-8"), re.MULTILINE):
            _includes((path.parent / name).resolve(), seen)
    return seen


def _compile(job: tuple[list[str], Path]) -> None:
    command, target = job
    if target.exists():
        return
    for old in target.parent.glob(target.name.rsplit(".", 2)[0] + ".*.o"):
        old.unlink(missing_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.tmp")
    _run([*command, "-o", str(partial)])
    partial.replace(target)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildFailed(f"cannot run {command[0]}: {error}; install a C++17 compiler or set CXX") from error
    if done.returncode != 0:
        raise BuildFailed(f"{shlex.join(command)} failed:\n{done.stderr.strip()[-4000:]}")
    return done.stdout


def wheel_tag() -> str:
    """py3-none-<this platform>: any Python 3, no Python ABI. auditwheel makes manylinux of linux."""
    system = sysconfig.get_platform().replace("universal2", target_machine())
    return "py3-none-" + system.replace("-", "_").replace(".", "_")


class CustomBuildHook(BuildHookInterface):  # pyright: ignore[reportGeneralTypeIssues]
    """Hatchling calls `initialize` before it packs a wheel, editable or not."""

    def initialize(self, version: str, build_data: dict) -> None:
        mode = os.environ.get("VSSM_BUILD", "")
        if mode not in ("", "skip", "require"):
            raise ValueError(f"VSSM_BUILD={mode!r} is not known; unset it or use skip or require")
        if self.target_name != "wheel" or mode == "skip":
            return
        try:
            build(Path(self.root))
        except BuildFailed as error:
            if mode == "require":
                raise
            self.app.display_warning(f"vssm: the C++ core was not built, the slower torch path will be used. {error}")
            return
        build_data["artifacts"].append(f"vssm/lib/{LIBRARY}")
        build_data["pure_python"] = False
        build_data["tag"] = wheel_tag()


if __name__ == "__main__":
    try:
        print(build())
    except BuildFailed as failure:
        sys.exit(str(failure))
