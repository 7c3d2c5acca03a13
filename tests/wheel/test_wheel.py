"""Wheels and the source archive: what is in them, where they run, and that they do without a compiler."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.utils import parse_wheel_filename

import vssm
from vssm.ops import native

ROOT = Path(__file__).parents[2]
SMOKE = Path(__file__).parent / "smoke.py"
MAX_BYTES = 3_000_000
BUILT = (".gitignore", "README.md", "LICENSE", "pyproject.toml", "hatch_build.py")

pytest.importorskip("hatchling", reason="hatchling is not installed")


@pytest.fixture(scope="module")
def hatch_build():
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what is built, with the objects that were compiled before, so that the working tree stays as it is."""
    folder = tmp_path_factory.mktemp("source")
    for name in BUILT:
        shutil.copy(ROOT / name, folder)
    for name in ("csrc", "vssm", "vssm_cli"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "lib"))
    if (ROOT / "build" / "core").exists():
        shutil.copytree(ROOT / "build" / "core", folder / "build" / "core")
    return folder


def _build(source, out, kind, **environment):
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)]
    done = subprocess.run(
        command, cwd=source, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = out.iterdir()
    return file


def test_a_pure_wheel(source, tmp_path):
    wheel = _build(source, tmp_path, "wheel", VSSM_BUILD="skip")
    name, version, _, tags = parse_wheel_filename(wheel.name)
    assert (name, str(version), set(map(str, tags))) == ("vssm", vssm.__version__, {"py3-none-any"})
    found = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        path.relative_to(source).as_posix()
        for folder in ("vssm", "vssm_cli")
        for path in (source / folder).rglob("*")
        if path.is_file() and not {"__pycache__", "lib"} & set(path.parts)
    }
    assert {name for name in found if ".dist-info" not in name} == expected
    assert "vssm/py.typed" in found and not any(name.endswith((".so", ".dylib", ".dll")) for name in found)


@pytest.mark.parametrize(
    ("system", "machine", "tag", "variants"),
    [
        ("linux-x86_64", "x86_64", "py3-none-linux_x86_64", ["baseline", "avx2", "avx512"]),
        ("linux-aarch64", "aarch64", "py3-none-linux_aarch64", ["neon"]),
        ("macosx-11.0-arm64", "arm64", "py3-none-macosx_11_0_arm64", ["neon"]),
        ("macosx-10.9-universal2", "arm64", "py3-none-macosx_10_9_arm64", ["neon"]),
        ("macosx-10.9-x86_64", "arm64", "py3-none-macosx_10_9_x86_64", ["baseline", "avx2", "avx512"]),  # a cross build
        ("win-amd64", "AMD64", "py3-none-win_amd64", ["baseline", "avx2", "avx512"]),
        ("win-arm64", "AMD64", "py3-none-win_arm64", ["neon"]),
        ("linux-riscv64", "riscv64", "py3-none-linux_riscv64", ["generic"]),
    ],
)
def test_tags_and_instruction_sets(hatch_build, monkeypatch, system, machine, tag, variants):
    monkeypatch.setattr(hatch_build.sysconfig, "get_platform", lambda: system)
    monkeypatch.setattr(hatch_build.platform, "machine", lambda: machine)
    assert hatch_build.wheel_tag() == tag and list(hatch_build.variants()) == variants


def test_wheels_are_configured_for_every_system():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["cibuildwheel"]
    assert config["environment"] == {"VSSM_BUILD": "require"} and SMOKE.name in config["test-command"]
    archs = {system: config[system]["archs"] for system in ("linux", "macos", "windows")}
    assert archs == {"linux": ["x86_64", "aarch64"], "macos": ["x86_64", "arm64"], "windows": ["AMD64", "ARM64"]}


@pytest.mark.skipif(sys.platform != "linux" or not native.available(), reason="needs the core on Linux")
def test_what_the_core_needs():
    """Libraries of the manylinux policies only; neither Python nor torch."""
    from elftools.elf.elffile import ELFFile

    with (ROOT / "vssm" / "lib" / "libvssm_core.so").open("rb") as file:
        needed = {tag.needed for tag in ELFFile(file).get_section_by_name(".dynamic").iter_tags("DT_NEEDED")}
    assert needed <= {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "libpthread.so.0"} | {
        name for name in needed if name.startswith("ld-linux")
    }


# ---- in environments of their own ----


def _environment(folder):
    """Python of a fresh environment that sees the installed torch and timm, but not this package, and no compiler."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    (site,) = folder.glob("[Ll]ib/python*/site-packages")
    # Folders that a .pth file names are searched, but their own .pth files, that of an editable install, are not read.
    (site / "torch-and-others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    path = str(folder / "bin")
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CXX", "VSSM_BUILD")}
    return folder / "bin" / "python", variables | {"PATH": path, "VIRTUAL_ENV": str(folder)}


def _run(python, variables, *arguments):
    done = subprocess.run(
        [str(python), *map(str, arguments)],
        cwd=python.parent,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="looks into a wheel of Linux")
@pytest.mark.skipif(not native.available(), reason="needs a compiler")
def test_a_wheel_with_the_core_runs_without_a_compiler(source, tmp_path):
    wheel = _build(source, tmp_path / "dist", "wheel", VSSM_BUILD="require")
    _, _, _, tags = parse_wheel_filename(wheel.name)
    assert set(map(str, tags)) == {f"py3-none-linux_{sysconfig.get_platform().partition('-')[2]}"}
    assert wheel.stat().st_size < MAX_BYTES
    shown = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", str(wheel)], capture_output=True, text=True, check=True
    ).stdout
    assert '"manylinux_2_' in shown, shown
    python, variables = _environment(tmp_path / "venv")
    assert shutil.which("cc", path=variables["PATH"]) is None and shutil.which("c++", path=variables["PATH"]) is None
    _run(python, variables, "-m", "pip", "install", "-q", "--no-index", "--no-deps", wheel)
    assert _run(python, variables, SMOKE, "core").startswith(f"core: vssm {vssm.__version__}")
    assert _run(python, variables, python.with_name("vssm"), "--version") == f"vssm {vssm.__version__}\n"
    assert "C++ core" in _run(python, variables, python.with_name("vssm"), "info")


@pytest.mark.full
@pytest.mark.skipif(sys.platform == "win32", reason="paths of other systems")
def test_the_source_archive_installs_without_a_compiler(source, tmp_path):
    archive = _build(source, tmp_path / "dist", "sdist")
    with tarfile.open(archive) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    assert {"csrc/core.cpp", "hatch_build.py", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert not any(name.endswith((".so", ".o")) for name in names)
    python, variables = _environment(tmp_path / "venv")
    _run(python, variables, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation", archive)
    assert _run(python, variables, SMOKE, "pure").startswith(f"pure: vssm {vssm.__version__}")
