"""The documentation site: its sources from the pages of the repository, and its build without a warning."""

import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


def _load():
    spec = importlib.util.spec_from_file_location("site_of_docs", ROOT / "docs" / "site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


site = _load()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "build" / "site-source"
    site.write(folder)
    return folder


def _pages(nav):
    for entry in nav:
        if isinstance(entry, str):
            yield entry
        else:
            for inside in entry.values():
                yield from _pages(inside)


def test_every_page_is_in_the_navigation_once(source):
    text = re.sub(r"!!python\S*", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = list(_pages(yaml.safe_load(text)["nav"]))
    assert len(pages) == len(set(pages))
    assert set(pages) == {path.relative_to(source).as_posix() for path in source.rglob("*.md")}


def test_every_link_leads_to_a_file_of_the_site(source):
    links = 0
    for page in source.rglob("*.md"):
        for target in re.findall(r"\]\(([^)\s#:]+)[#)]", site.FENCE.sub("", page.read_text(encoding="utf-8"))):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
            links += 1
    assert links > 80
    assert "](models.md#fusion-operators)" in (source / "index.md").read_text(encoding="utf-8")
    assert "no-run" not in (source / "install.md").read_text(encoding="utf-8")


def test_the_reference_names_all_that_is_public(source):
    for name in site.MODULES:
        module = importlib.import_module(name)
        text = (source / "reference" / f"{name}.md").read_text(encoding="utf-8")
        found = {line.rpartition(".")[2] for line in text.splitlines() if line.startswith("::: ")}
        assert found == {n for n in module.__all__ if callable(getattr(module, n))}, name


def test_a_broken_link_and_a_full_folder_are_refused(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    for name in site.PAGES_OF_ROOT:
        (tmp_path / name).write_text("[more](docs/gone.md)\n")
    monkeypatch.setattr(site, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"README.md: docs/gone.md does not exist"):
        site.write(tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        site.write(tmp_path / "full")


def test_the_site_builds_without_a_warning(source):
    """With a signature and a table of parameters for an operator."""
    root = source.parent.parent
    shutil.copyfile(ROOT / "mkdocs.yml", root / "mkdocs.yml")
    (root / "vssm").symlink_to(ROOT / "vssm")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "No issues found" in said and "griffe" not in said, said
    page = (root / "build" / "site" / "reference" / "vssm.ops.html").read_text(encoding="utf-8")
    assert 'id="vssm.ops.ss2d.ss2d"' in page and "x_proj_weight" in page
