"""The command line of `vssm fit` and `vssm validate`: settings, recipes, short names, and errors of one line."""

import contextlib
import dataclasses
import io
import itertools
import json
import re
from pathlib import Path
from typing import Any, get_type_hints

import docstring_parser
from docstring_parser import Docstring
from jsonargparse import ArgumentError, ArgumentParser

from vssm._yaml import read_yaml
from vssm.settings import DataSettings, ModelSettings, OptimSettings, Settings, TrainerSettings
from vssm_cli import PACKAGE
from vssm_cli.parsing import UsageError, nearest

RECIPES = PACKAGE / "recipes"

# Short names of the options used every day.
SHORT = {
    "--model": "--model.name",
    "--pretrained": "--model.pretrained",
    "--init-from": "--model.init_from",
    "--head": "--model.head",
    "--network": "--model.network",
    "--freeze": "--model.freeze",
    "--data": "--data.name",
    "--image-size": "--data.image_size",
    "--batch-size": "--data.batch_size",
    "--workers": "--data.workers",
    "--lr": "--optim.lr",
    "--epochs": "--trainer.max_epochs",
    "--accelerator": "--trainer.accelerator",
    "--devices": "--trainer.devices",
    "--precision": "--trainer.precision",
}

SECTIONS = {
    "model": ModelSettings,
    "data": DataSettings,
    "optim": OptimSettings,
    "trainer": TrainerSettings,
}

_UNDERSCORED = tuple(f"--{section}." for section in SECTIONS)
_OWN = {field.name for field in dataclasses.fields(Settings)}
_SWITCHES = {
    f"--{section}.{field.name}"
    for section, kind in SECTIONS.items()
    for field in dataclasses.fields(kind)
    if field.type == "bool" or field.type is bool
}


_LISTS = {
    f"--{section}.{field.name}"
    for section, kind in SECTIONS.items()
    for field in dataclasses.fields(kind)
    if str(field.type).startswith("list[")
}
_SPLITS = ("--data.train", "--data.val", "--data.test")
_PATTERNS = {"--model.freeze", "--optim.no_decay"}


def recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    found = {path.relative_to(RECIPES): path for path in sorted(RECIPES.rglob("*.yaml"))}
    return {name.with_suffix("").as_posix(): path for name, path in found.items()}


def settings_parser(command: str, description: str) -> ArgumentParser:
    """A parser for all settings, in their sections. Options of the command itself can be added to it."""
    parser = ArgumentParser(
        prog=f"vssm {command}",
        description=description,
        usage=f"vssm {command} [--config RECIPE] [--SECTION.NAME VALUE ...]",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", metavar="RECIPE", help="a recipe by name (`vssm recipes`) or a YAML file; options override it"
    )
    _add_fields(parser, "", Settings, _documented(Settings))
    for name, section in SECTIONS.items():
        documented = _documented(section)
        _add_fields(parser.add_argument_group(documented.short_description), f"{name}.", section, documented)
    return parser


def _documented(section: type) -> Docstring:
    return docstring_parser.parse(section.__doc__ or "")


def _add_fields(group: Any, prefix: str, section: type, documented: Docstring) -> None:
    """An option for each field: its type and default are the dataclass's, its help is the field's docstring.

    jsonargparse would do this for the class as a whole, but imports the class's package while it does.
    """
    helps = {param.arg_name: param.description for param in documented.params}
    types = get_type_hints(section)
    defaults = section()
    for field in dataclasses.fields(section):
        name = prefix + field.name
        if field.name not in SECTIONS:
            short = "".join(f"; short: {short}" for short, full in SHORT.items() if full == f"--{name}")
            default, text = getattr(defaults, field.name), f"{helps[field.name]}{short}"
            group.add_argument(f"--{name}", type=types[field.name], default=default, help=text)


def parse_settings(parser: ArgumentParser, argv: list[str], stored: dict[str, Any] | None = None) -> Any:
    """The parsed namespace, or None when help was asked for and printed.

    Options win over the recipe of --config, which wins over `stored` (the settings of an earlier run), which wins
    over the defaults. Raises UsageError for what is unknown or of the wrong type.
    """
    if {"-h", "--help"} & set(argv):
        parser.print_help()
        return None
    argv = _spell_out(argv)
    try:
        if stored is not None:
            parser.set_defaults(_flat(stored))
        recipe = _recipe_of(argv)
        if recipe is not None:
            parser.set_defaults(_checked(recipe, parser))
        with contextlib.redirect_stderr(io.StringIO()):
            return parser.parse_args(argv)
    except (ArgumentError, KeyError, TypeError) as error:
        raise UsageError(f"{_one_line(str(error), parser)} (`{parser.prog} --help` lists all)") from error


def to_settings(parsed: Any) -> Settings:
    """The settings of a parsed command line. Raises ValueError for a number that makes no sense."""
    plain = parsed.as_dict() if hasattr(parsed, "as_dict") else dict(parsed)
    settings = Settings.from_dict({name: value for name, value in plain.items() if name in _OWN})
    settings.name_data()
    settings.check()
    return settings


def read_settings(path: Path, parser: ArgumentParser) -> Settings:
    """The settings in a YAML file over the defaults. Raises UsageError that names the file and what is wrong in it."""
    return to_settings(parse_settings(parser, ["--config", str(path)]))


def _spell_out(argv: list[str]) -> list[str]:
    """Short names in full; dashes for underscores; a bare switch (--model.pretrained) means true; what follows an
    option of several values (--model.freeze, --data.test_scales) becomes one list."""
    spelled: list[str] = []
    rest = list(argv)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        option = SHORT.get(option, option)
        if option.startswith(_UNDERSCORED) or option[2:].replace("-", "_") in _OWN:
            option = "--" + option[2:].replace("-", "_")
        following = list(itertools.takewhile(lambda word: not word.startswith("--"), rest))
        given = [value] if equals else following
        if option in _SWITCHES and not given:
            spelled += [option, "true"]
        elif option in _LISTS and given and not given[0].startswith("["):
            words = " ".join(given).split()
            spelled += [option, json.dumps(words) if option in _PATTERNS else f"[{', '.join(words)}]"]
            rest = rest if equals else rest[len(following) :]
        else:
            spelled.append(f"{option}{equals}{value}")
    options = {word.partition("=")[0] for word in spelled}
    given = options & {"--data.root", *_SPLITS}
    if given and "--data.name" not in options:
        spelled += ["--data.name", "null"]  # a folder is what the task takes, whatever a recipe has
    if given == {"--data.root"}:
        spelled += [word for split in _SPLITS for word in (split, "null")]  # nor is what a run had
    return spelled


def _recipe_of(argv: list[str]) -> Path | None:
    for position, argument in enumerate(argv):
        option, equals, value = argument.partition("=")
        if option == "--config":
            name = value if equals else "".join(argv[position + 1 : position + 2])
            return _find_recipe(name)
    return None


def _find_recipe(name: str) -> Path:
    known = recipes()
    asked = name.removeprefix("recipes/").removesuffix(".yaml")
    path = Path(name) if Path(name).exists() or asked not in known else known[asked]
    if not path.exists():
        raise UsageError(
            f"no recipe and no file is called {name!r}{nearest(name, known)} (`vssm recipes` lists the recipes)"
        )
    if path.is_dir():
        raise UsageError(f"{name} is a folder; --config takes a recipe's name or a YAML file")
    return path


def _flat(plain: dict[str, Any]) -> dict[str, Any]:
    """{"model": {"name": "x"}} -> {"model.name": "x"}; deeper dictionaries stay values."""
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        if name in SECTIONS and isinstance(value, dict):
            flat |= {f"{name}.{key}": entry for key, entry in value.items()}
        else:
            flat[name] = value
    return flat


def _checked(path: Path, parser: ArgumentParser) -> dict[str, Any]:
    """A recipe's settings by dotted name; UsageError names the file and the nearest right name."""
    try:
        flat = _flat(read_yaml(path))
    except ValueError as error:
        raise UsageError(str(error)) from None
    known = {action.dest for action in parser._actions}
    for name in flat:
        if name not in known or name in SECTIONS:
            raise UsageError(f"{path}: unknown setting {name}{nearest(name, known | SECTIONS.keys())}")
    try:
        parser.parse_object(dict(flat))  # the same check as for the command line
    except (ArgumentError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: {_one_line(str(error), parser)}") from error
    return flat


def _one_line(message: str, parser: ArgumentParser) -> str:
    """jsonargparse's reports, some of many lines, as one that names option, value and what was expected."""
    options = [option for action in parser._actions for option in action.option_strings] + list(SHORT)
    unknown = re.match(r"unrecognized arguments: (\S+)", message, re.IGNORECASE)
    if unknown:
        word = unknown[1].partition("=")[0]
        kind = "option" if word.startswith("-") else "argument"
        return f"unknown {kind} {word}{nearest(word, options)}"
    message = re.sub(r"^argument (--[\w.]+)/--[\w.]+\+:", r"argument \1:", message)  # a list has a second name
    wrong = re.match(r'Parser key "([\w.]+)":', message)
    if wrong is None:
        return " ".join(message.split())
    value = re.findall(r"(?:Got value|Given value): (.*)", message)
    close = ""
    choices = re.search(r"Literal\[(.*?)\]", message)
    kinds = re.findall(r"Expected (?:an? )?<class '(\w+)'>", message)
    if choices:
        allowed = [word.strip("' ") for word in choices[1].split(",")]
        close = nearest(value[-1], allowed) if value else ""
        expected = f"one of {', '.join(allowed)}"
    elif kinds:
        expected = " or ".join("null" if kind == "NoneType" else kind for kind in kinds)
    else:
        expected = " ".join(message.partition(":")[2].split()).removeprefix("Expected ")
        expected = re.sub(r"\. (Got value|Given value): .*", "", expected)
    return f"--{wrong[1]}: expected {expected}" + (f", not {value[-1]!r}{close}" if value else "")
