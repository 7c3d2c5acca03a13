"""The public names: what docs/stability.md promises is there, and no package hides what it exports."""

import importlib
from pathlib import Path

import pytest

import vssm

PACKAGE = Path(vssm.__file__).parent
PUBLIC = ("", ".ops", ".nn", ".models", ".weights", ".tasks", ".inference", ".analysis", ".data", ".figures")

# Stable: a name leaves this list only after a version that warned.
EXPORTED = {
    "__version__",
    "add_adaptors",
    "complexity",
    "convert",
    "create_model",
    "freeze_base",
    "list_models",
    "load",
    "load_adaptors",
    "load_checkpoint",
    "save_adaptors",
}


def test_what_the_package_exports():
    assert set(vssm.__all__) == EXPORTED


@pytest.mark.parametrize("name", PUBLIC)
def test_every_exported_name_is_there(name):
    package = importlib.import_module(f"vssm{name}")
    assert len(package.__all__) == len(set(package.__all__)) > 0
    missing = []
    for exported in package.__all__:
        if not hasattr(package, exported):  # a module of the package, imported on demand
            folder = Path(package.__file__).parent
            if not (folder / f"{exported}.py").exists() and not (folder / exported / "__init__.py").exists():
                missing.append(exported)
    assert not missing


@pytest.mark.parametrize("name", [".inference", ".data", ".figures"])
def test_packages_without_names_of_their_own_list_their_modules(name):
    package = importlib.import_module(f"vssm{name}")
    modules = {path.stem for path in Path(package.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(package.__all__) == modules


def test_types_are_shipped():
    assert (PACKAGE / "py.typed").read_bytes() == b""
