"""The command `vssm`: parses, calls the package, prints.

It lies beside the package and not inside, because importing anything of `vssm` imports torch and timm, while help and
typing errors shall answer at once. The settings that are parsed are the package's own: `take_settings` fetches their
module without the package. Nobody imports this but the entry points, `vssm`, `python -m vssm_cli` and `python -m vssm`.
"""

import importlib.util
import sys
from pathlib import Path

# In the order in which they import each other. All need the standard library only (yaml is imported when it is used).
LIGHT = ("_version", "_words", "_writing", "_yaml", "_ranks", "_limits", "settings")


def take_settings() -> Path:
    """Makes the LIGHT modules of `vssm` importable without running the package, and returns the package's folder.

    Each is loaded from its file under its own name, `vssm.settings` and so on. An import of the package that comes
    later finds it in `sys.modules`, so that there is one of each class; where the package was imported before, nothing
    is loaded again.
    """
    package = importlib.util.find_spec("vssm")  # finds the folder, and runs nothing in it
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("the package vssm is not installed beside its command", name="vssm")
    folder = Path(package.submodule_search_locations[0])
    for name in LIGHT:
        full = f"vssm.{name}"
        if full in sys.modules:
            continue
        spec = importlib.util.spec_from_file_location(full, folder / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return folder


PACKAGE = take_settings()
