"""The entry point: help, speed, nearest names, exit codes."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vssm
import vssm_cli
from vssm_cli.command import COMMANDS, main
from vssm_cli.settings import parse_settings, settings_parser

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "timm", "lightning", "matplotlib", "sklearn", "torchmetrics", "numpy", "rich", "vssm"}


def python(code, *argv):
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("argv", "limit"), [(["--help"], 0.5), (["fit", "--help"], 2.0), (["predict", "--help"], 0.5)])
def test_help_is_quick(argv, limit):
    """In seconds of the processor."""
    code = "import time, sys; from vssm_cli.command import main; main(sys.argv[1:]); print(time.process_time())"
    assert float(python(code, *argv).splitlines()[-1]) < limit


def test_the_end_collects_once():
    """What is registered first runs last."""
    code = "atexit.register(lambda: print('frozen:', gc.get_freeze_count())); from vssm_cli.command import main; main()"
    frozen = python(f"import atexit, gc; {code}", "--version").split()[-1]
    assert int(frozen) > 1000


WITHOUT_IMPORTS = [["--help"], ["--version"], ["nonsense"], ["fit", "--help"], ["fit", "--nonsense"], ["recipes"]]
WITHOUT_IMPORTS += [["fit", "--config", "digits", "--lr", "-1"], ["predict"], ["table", "--help"]]


@pytest.mark.parametrize("argv", WITHOUT_IMPORTS, ids=" ".join)
def test_parsing_imports_nothing_heavy(argv):
    code = f"""
import sys
from vssm_cli.command import main
main(sys.argv[1:])
print(sorted({HEAVY!r} & set(sys.modules)))
"""
    assert python(code, *argv).splitlines()[-1] == "[]"


def test_settings_are_those_of_the_package():
    """Whichever is imported first; and the package is complete after it."""
    code = """
import sys
from vssm_cli.settings import Settings, parse_settings, settings_parser, to_settings
settings = to_settings(parse_settings(settings_parser("fit", ""), ["--lr", "2"]))
assert "vssm" not in sys.modules
import vssm
assert vssm.settings.Settings is Settings is type(settings) and settings.optim.lr == 2
assert vssm.settings is sys.modules["vssm.settings"]
print(len(vssm.list_models()))
"""
    assert int(python(code)) > 10
    other = "import vssm.settings; from vssm_cli.settings import Settings; print(vssm.settings.Settings is Settings)"
    assert python(other) == "True\n"


@pytest.mark.parametrize("name", ["vssm", "vssm.py"])
def test_a_script_of_that_name_has_the_whole_package(name, tmp_path):
    """A script called `vssm` is not taken for the command; -P keeps vssm.py itself from being found as the package."""
    script = tmp_path / name
    script.write_text("import vssm; print(callable(vssm.create_model), len(vssm.list_models()) > 10)")
    argv = [sys.executable, "-P", str(script), "fit"]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "True True\n"


@pytest.mark.parametrize("module", ["vssm", "vssm_cli"])
def test_both_modules_start_it(module):
    argv = [sys.executable, "-m", module, "fit", "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: vssm fit")


def test_without_the_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="the package vssm is not installed beside its command"):
        vssm_cli.take_settings()


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)
    assert main([]) == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: vssm {name}")


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vssm {vssm.__version__}\n"


def test_the_version_is_written_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"] and "version" not in project["project"]
    assert project["tool"]["hatch"]["version"]["path"] == "vssm/_version.py"


WRONG = [
    (["fti"], "no command 'fti'; nearest: fit"),
    (["--hlep"], "no option '--hlep'; nearest: --help"),
    (["fit"], "no images given: --data.root FOLDER"),
    (["fit", "--modle", "x"], "unknown option --modle; nearest: --model"),
    (["fit", "--optim.lrr=3"], "unknown option --optim.lrr; nearest: --optim.lr"),
    (["fit", "surplus"], "unknown argument surplus"),
    (
        ["fit", "--data", "digit"],
        "--data.name: expected one of digits, imagefolder, shards, parquet, coco, masks, not 'digit'; nearest: digits",
    ),
    (["fit", "--optim.betas", "[1]"], "--optim.betas: expected a tuple with 2 elements, not '[1]'"),
    (["fit", "--epochs", "many"], "--trainer.max_epochs: expected int, not 'many'"),
    (["fit", "--data.image-size", "big"], "--data.image_size: expected int or null, not 'big'"),
    (["fit", "--seed"], "--seed: expected one argument"),
    (["fit", "--freeze"], "--model.freeze: expected one argument"),
    (["fit", "--config", "digts"], "is called 'digts'; nearest: digits"),
    (["fit", "--config", "."], "is a folder; --config takes"),
    (["fit", "--resume", "run", "--lr", "1"], "--resume continues a run with its own settings"),
    (["validate"], "no checkpoint given: --checkpoint RUN_DIR"),
    (["test"], "no checkpoint given: --checkpoint RUN_DIR"),
    (["predict"], "no images named: IMAGE|FOLDER|PATTERN"),
    (["predict", "x.png"], "nothing to predict with: --checkpoint"),
    (["predict", "x.png", "--chekpoint", "y"], "unknown argument --chekpoint; nearest: --checkpoint"),
    (["predict", "x.png", "--model", "m", "--top-k", "0"], "--top-k must be at least 1, not 0"),
    (["complexity"], "MODEL"),
    (["convert", "only-one.pth"], "OUT.safetensors"),
    (["info", "--dtype", "int7"], "int7"),
    (["demo", "--seed", "x"], "--seed"),
]


@pytest.mark.parametrize(("argv", "words"), WRONG, ids=[" ".join(argv) for argv, _ in WRONG])
def test_bad_usage_is_one_line(argv, words, capsys):
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert words in shown.err
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("vssm: error: ")


@pytest.mark.parametrize(
    ("words", "patterns"),
    [
        (["--freeze", "stem.*", "*.A_log", "--lr", "1"], ["stem.*", "*.A_log"]),
        (["--freeze=stem.* *.A_log"], ["stem.*", "*.A_log"]),
        (["--model.freeze", '["stem.*", "*.A_log"]'], ["stem.*", "*.A_log"]),
        ([], []),
    ],
)
def test_patterns_can_be_typed_in_any_way(words, patterns):
    assert parse_settings(settings_parser("fit", ""), words).model.freeze == patterns


def test_switches_and_dashes():
    words = ["--model.compile", "--model.channels-last", "--early-stopping", "3", "--lr=2"]
    parsed = parse_settings(settings_parser("fit", ""), words)
    assert parsed.model.compile and parsed.model.channels_last
    assert (parsed.early_stopping, parsed.optim.lr) == (3, 2)
    assert parse_settings(settings_parser("fit", ""), ["--model.compile", "false"]).model.compile is False


def test_bad_recipe_is_named(tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    for text, words in {
        "model: {nam: x}": "mine.yaml: unknown setting model.nam; nearest: model.name",
        "modle: {name: x}": "mine.yaml: unknown setting modle; nearest: model",
        "data: {batch_size: many}": "mine.yaml: --data.batch_size: expected int, not 'many'",
        "model: [": "mine.yaml: not valid YAML",
    }.items():
        recipe.write_text(text)
        assert main(["fit", "--config", str(recipe)]) == 2
        assert words in capsys.readouterr().err


def test_a_bug_is_not_hidden(monkeypatch):
    import vssm_cli.recipes

    def fail(argv):
        raise RuntimeError("ours")

    monkeypatch.setattr(vssm_cli.recipes, "main", fail)
    with pytest.raises(RuntimeError, match="ours"):
        main(["recipes"])


def test_debug_keeps_the_traceback(tmp_path):
    with pytest.raises(FileNotFoundError):
        main(["fit", "--resume", str(tmp_path / "none"), "--debug"])


def test_missing_extra_is_named(monkeypatch, capsys):
    import vssm_cli.recipes

    def fail(argv):
        raise ModuleNotFoundError("No module named 'lightning'", name="lightning")

    monkeypatch.setattr(vssm_cli.recipes, "main", fail)
    assert main(["recipes"]) == 1
    assert "needs lightning, which is not installed: pip install 'vssm[train]'" in capsys.readouterr().err
