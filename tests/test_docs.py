"""The documentation: every python and console block runs, links resolve, tables agree with the code.

```python and ```console blocks of a page run in order, in one folder and one namespace. A fence with `no-run: REASON`
is skipped. Lines of a console block begin with `$ ` and are commands of `vssm`.
"""

import ast
import dataclasses
import json
import re
import shlex
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vssm
from vssm.models.mamba_adaptor import MambaAdaptorConfig
from vssm.models.spatial_mamba import SpatialMambaConfig
from vssm.models.vim import VimConfig
from vssm.models.vmamba import VMambaConfig
from vssm.nn import STATE_FNS, DynamicFusion
from vssm.weights import CATALOG
from vssm.weights.rename import VMAMBA, to_official
from vssm_cli.command import main

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]
FENCE = re.compile(r"^```(\w*)[ ]*([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IDS = [path.name for path in DOCUMENTS]

OFFICIAL = "vssm1_tiny_0230s_ckpt_epoch_264.pth"


def blocks(path):
    """(line, language, rest of the fence, text) of every fenced block."""
    text = path.read_text(encoding="utf-8")
    return [(text[: m.start()].count("\n") + 1, m[1], m[2], m[3]) for m in FENCE.finditer(text)]


def runnable(path):
    return [block for block in blocks(path) if block[1] in ("python", "console") and not block[2]]


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A file named and laid out like one of the authors' release, with random weights."""
    path = tmp_path_factory.mktemp("official") / OFFICIAL
    model = vssm.create_model("vmamba_tiny")
    torch.save({"model": to_official(model.state_dict(), VMAMBA)}, path)
    return path


@pytest.fixture
def workspace(tmp_path, official, monkeypatch):
    """The files that the pages assume: photo.jpg, folder/, list.txt, my_images/{train,val}/{cats,dogs}, weights."""
    generator = np.random.default_rng(0)

    def picture(path, size=(48, 40)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)

    for split, count in (("train", 6), ("val", 3)):
        for name in ("cats", "dogs"):
            for number in range(count):
                picture(tmp_path / "my_images" / split / name / f"{number}.jpg")
    for number in range(2):
        picture(tmp_path / "folder" / f"{number}.png")
    picture(tmp_path / "photo.jpg", (240, 300))
    (tmp_path / "list.txt").write_text("photo.jpg\nfolder\n")
    (tmp_path / OFFICIAL).symlink_to(official)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if runnable(path)], ids=lambda path: path.name)
def test_blocks_run(path, workspace):
    namespace = {}
    for line, language, _, text in runnable(path):
        where = f"{path.name}, line {line}"
        if language == "python":
            exec(compile(text, where, "exec"), namespace)
            continue
        for command in text.strip().splitlines():
            assert command.startswith("$ vssm "), f"{where}: {command!r} is not a command of vssm; mark it no-run"
            assert main(shlex.split(command.removeprefix("$ vssm "), comments=True)) == 0, f"{where}: {command}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_a_skipped_block_gives_a_reason(path):
    for line, language, rest, _ in blocks(path):
        where = f"{path.name}, line {line}"
        assert language in ("python", "console", "text", "yaml"), f"{where}: {language!r}"
        assert not rest or (language in ("python", "console") and re.fullmatch(r"no-run: .{8,}", rest)), where


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_links_resolve(path):
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = path if not name else path.parent / name
        assert file.exists(), f"{path.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {_slug(heading) for heading in headings}, f"{path.name}: {target}"


def _slug(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_readme_links_every_document():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in PAGES if f"docs/{path.name}" not in text] == []


def test_changelog_and_citation_are_of_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[([\d.]+)\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)[0] == vssm.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [vssm.__version__]
    for number in ("2401.10166", "2410.15091", "2505.12685", "2401.09417"):
        assert f"arxiv.org/abs/{number}" in citation


def rows(path, columns):
    """The cells of every table row of a document that begins with a name in backticks and has `columns` cells."""
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if line.startswith("| `") and len(cells) == columns:
            yield cells


def test_models_table_agrees_with_the_official_counts_and_the_catalogue():
    counted = json.loads((ROOT / "tests/data/complexity.json").read_text(encoding="utf-8"))
    official = {name: (c["params"], c["macs"]["224"] / 1e9) for name, c in counted["vmamba"].items()}
    for size, c in counted["spatial_mamba"].items():
        official[f"spatial_mamba_{size}"] = c["params"], c["gflops_official_train_flags"]
    table = {row[0].strip("`"): row for row in rows(ROOT / "docs/models.md", 7)}
    for size in ("tiny", "small", "base"):  # their authors counted no multiply-adds
        official[f"vim_{size}"] = None, None
    assert set(table) == set(CATALOG) == set(official)
    for name, (params, gmacs) in official.items():
        assert params is None or table[name][4:6] == [f"{params:,}", f"{gmacs:.3f}"], name
        assert float(table[name][6]) == CATALOG[name].top1, name


def test_readme_table_is_that_of_the_models_rounded():
    exact = {row[0].strip("`"): row for row in rows(ROOT / "docs/models.md", 7)}
    table = {re.findall(r"`(\w+)`", row[0])[-1]: row for row in rows(ROOT / "README.md", 4) if "M" in row[1]}
    nano = {name: table.pop(name) for name in ("vmamba_nano", "spatial_mamba_nano", "vim_nano")}
    assert set(table) == set(exact)
    for name, (*_, params, macs, top1) in exact.items():
        millions = int(params.replace(",", "")) / 1e6
        assert table[name][1:] == [f"{millions:.1f} M", f"{float(macs):.2f} G", top1], name
    for name, row in nano.items():
        counted = vssm.complexity(vssm.create_model(name))
        assert row[1:] == [f"{counted.params / 1e6:.2f} M", f"{counted.macs / 1e9:.3f} G, at 32", "-"], name


def test_official_configurations_can_be_made():
    table = [row for row in rows(ROOT / "docs/weights.md", 3) if re.match(r"`(vssm|vssmab|spatialmamba)/", row[0])]
    assert len(table) == 37
    for _, name, arguments in table:
        call = ast.parse(f"f({arguments.strip('`')})", mode="eval").body
        assert isinstance(call, ast.Call)
        with torch.device("meta"):
            vssm.create_model(name.strip("`"), **{k.arg: ast.literal_eval(k.value) for k in call.keywords})


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(CATALOG))
def test_models_table_is_what_the_command_counts(name):
    counted = vssm.complexity(vssm.create_model(name))
    ((_, *_, params, macs, _),) = (row for row in rows(ROOT / "docs/models.md", 7) if row[0] == f"`{name}`")
    assert (params, macs) == (f"{counted.params:,}", f"{counted.macs / 1e9:.3f}")


@pytest.mark.full
def test_fusion_operators_are_what_the_command_counts():
    table = {row[0].strip('`"'): row for row in rows(ROOT / "docs/models.md", 5) if row[3][:1].isdigit()}
    assert set(table) == set(STATE_FNS)
    for name, (*_, params, macs) in table.items():
        counted = vssm.complexity(vssm.create_model("spatial_mamba_tiny", state_fn=name))
        assert (params, macs) == (f"{counted.params:,}", f"{counted.macs / 1e9:.3f}"), name


@pytest.mark.full
def test_reimplemented_models_are_what_the_command_counts():
    found = [row for row in rows(ROOT / "docs/models.md", 6) if row[3][:1].isdigit()]
    assert len(found) == 5
    for row in found:  # one row has two names, and two values per cell
        for name, params, macs in zip(*(row[column].split(", ") for column in (0, 3, 5)), strict=True):
            counted = vssm.complexity(vssm.create_model(name.strip("`")))
            assert (params, macs) == (f"{counted.params:,}", f"{counted.macs / 1e9:.3f}"), name


@pytest.mark.full
def test_designs_of_the_dynamic_convolution_are_what_the_command_counts():
    text = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    designs = re.findall(r"^\| [A-D]: [^|]+ \| ([^|]+) \| ([\d,]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert len(designs) == 4
    for options, params, macs in designs:
        call = ast.parse(f"f({'' if options == 'the defaults' else options.strip('`')})", mode="eval").body
        assert isinstance(call, ast.Call)
        values = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
        model = vssm.create_model("spatial_mamba_tiny", state_fn=partial(DynamicFusion, **values))
        counted = vssm.complexity(model)
        assert (params, macs) == (f"{counted.params:,}", f"{counted.macs / 1e9:.3f}"), options


@pytest.mark.full
def test_candidates_for_the_adaptor_backbones_are_what_the_block_counts():
    """The rows are arguments of the `candidate` that the document defines."""
    path, namespace = ROOT / "docs/models.md", {}
    (text,) = (text for _, language, _, text in runnable(path) if language == "python" and "def candidate" in text)
    exec(text, namespace)
    table = [row for row in rows(path, 4) if re.match(r'`"\w+", \d', row[0])]
    assert len(table) == 17
    for arguments, params, macs, _ in table:
        exec(f"counted = count(candidate({arguments[1:-1]}))", namespace)
        counted = namespace["counted"]
        assert (params, macs) == (f"{counted.params / 1e6:.2f} M", f"{counted.macs / 1e9:.1f}"), arguments


CONFIGS = [VMambaConfig, SpatialMambaConfig, VimConfig, MambaAdaptorConfig]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_every_field_of_a_configuration_is_explained(config):
    section = (ROOT / "docs/models.md").read_text(encoding="utf-8").partition(f"## `{config.__name__}`")[2]
    section = section.partition("\n## ")[0]
    named = {name for line in re.findall(r"^\| (`[^|]*)\|", section, re.MULTILINE) for name in re.findall(r"\w+", line)}
    inherited = {field.name for field in dataclasses.fields(VMambaConfig)} if config is MambaAdaptorConfig else set()
    assert {field.name for field in dataclasses.fields(config)} - inherited - named == set()


def test_every_official_file_has_its_row():
    text = (ROOT / "docs/weights.md").read_text(encoding="utf-8")
    for name, weights in CATALOG.items():
        file = (weights.url or "").rpartition("/")[2]
        assert any(f"`{name}`" in line and file in line for line in text.splitlines() if line.startswith("|")), name
