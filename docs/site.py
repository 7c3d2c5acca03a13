"""Writes the sources of the documentation site: README, CONTRIBUTING, CHANGELOG and docs/ as one folder of pages.

    python docs/site.py build/site-source

Also a page of reference for each public module, with what its `__all__` names. The files stay where readers of the
repository look for them. Here their links are turned to where they lie on the site, other files that they link to are
copied, and what only the tests read is taken off the fences. `make docs` builds the result with Zensical.
"""

import importlib
import os
import re
import shutil
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES_OF_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
MODULES = (
    "vssm",
    "vssm.models",
    "vssm.nn",
    "vssm.ops",
    "vssm.weights",
    "vssm.tasks",
    "vssm.tasks.detection",
    "vssm.tasks.segmentation",
    "vssm.analysis",
    "vssm.export",
    "vssm.hub",
)
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?^```)$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def write(target: Path) -> None:
    """Fills an empty or missing folder.

    Raises FileExistsError where it has something in it, FileNotFoundError for a link that leads to nothing.
    """
    if target.is_dir() and any(target.iterdir()):
        raise FileExistsError(f"{target} is not empty; give a new folder")
    pages = [*(ROOT / name for name in PAGES_OF_ROOT), *sorted((ROOT / "docs").rglob("*.md"))]
    for page in pages:
        place = target / _place(page)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(_converted(page, target), encoding="utf-8")
    (target / "reference").mkdir()
    for name in MODULES:
        (target / "reference" / f"{name}.md").write_text(_reference(name), encoding="utf-8")


def _reference(name: str) -> str:
    """The page of a module: each public name by where it is defined, as several are named like their subpackage."""
    module = importlib.import_module(name)
    blocks = [f"# {name}", module.__doc__ or ""]
    for public in module.__all__:
        value = getattr(module, public)
        home, own = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
        if isinstance(value, type) or callable(value):
            blocks.append(f"::: {home}.{own}")
    return "\n\n".join(blocks) + "\n"


def _place(file: Path) -> Path:
    """Where a file of the repository lies on the site."""
    inside = file.relative_to(ROOT)
    if inside.as_posix() in PAGES_OF_ROOT:
        return Path(PAGES_OF_ROOT[inside.as_posix()])
    return inside.relative_to("docs") if inside.parts[0] == "docs" else inside


def _converted(page: Path, target: Path) -> str:
    text, parts, end = page.read_text(encoding="utf-8"), [], 0
    moved = partial(_moved, page=page, target=target)
    for fence in FENCE.finditer(text):
        parts += [LINK.sub(moved, text[end : fence.start()]), f"```{fence[1]}\n{fence[2]}"]
        end = fence.end()
    return "".join([*parts, LINK.sub(moved, text[end:])])


def _moved(link: re.Match[str], page: Path, target: Path) -> str:
    """A link of a page, by where its target lies on the site; a target that is no page is copied there."""
    file = Path(os.path.normpath(page.parent / link[1]))
    if not file.is_file():
        raise FileNotFoundError(f"{page.relative_to(ROOT)}: {link[1]} does not exist")
    place = _place(file)
    if file.suffix != ".md":
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / place)
    relative = Path(os.path.relpath(place, _place(page).parent)).as_posix()
    return f"]({relative}{link[2] or ''})"


if __name__ == "__main__":
    write(Path(sys.argv[1]))
