"""Mappings in YAML files. Standard library and yaml only."""

from pathlib import Path
from typing import Any

from vssm._writing import replacing


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file; ValueError naming the file for anything else."""
    import yaml

    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(plain, dict):
        raise ValueError(f"{path}: expected a mapping of settings, got {type(plain).__name__}")
    return plain


def write_yaml(path: Path, plain: dict[str, Any]) -> None:
    """The inverse of `read_yaml`; the file is written whole or not at all."""
    import yaml

    with replacing(path) as new:
        new.write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
