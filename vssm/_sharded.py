"""A checkpoint in shards: a folder with a part from each process of a training, the rest, and a manifest.

manifest.json                          the bytes and the SHA-256 of each other file; written last
rest.ckpt                              all that is not sharded, by torch.save; read with weights_only=True
shard-*.safetensors                    the parts of the tensors, by torch.distributed.checkpoint

What is in it, and whether it is as it was written. Standard library only; `vssm.weights.sharded` reads it.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

MANIFEST, REST, SHARDS = "manifest.json", "rest.ckpt", ".safetensors"
FORMAT = 1


def is_sharded(path: Path) -> bool:
    """Also of a damaged one, by its name."""
    return path.is_dir() and (path.suffix == ".ckpt" or (path / MANIFEST).is_file())


def describe_file(file: Path) -> dict[str, Any]:
    """What the manifest says of a file."""
    with file.open("rb") as opened:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def write_manifest(folder: Path, files: Mapping[str, dict[str, Any]]) -> Path:
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"format": FORMAT, "files": dict(files)}, indent=1) + "\n", encoding="utf-8")
    return manifest


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint in shards, or None when it has the files of its manifest, as they were written.
    Reads all bytes."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            return f"{MANIFEST} has format {content['format']!r}, expected {FORMAT}"
        files = cast(dict[str, dict[str, Any]], dict(content["files"]))
        present = {path.name for path in folder.iterdir()} - {MANIFEST}
        if present != set(files) or REST not in files:
            return f"its files are not those of {MANIFEST}: {', '.join(sorted(present ^ (set(files) | {REST})))}"
        for name, about in files.items():
            file = folder / name
            if file.is_symlink() or not file.is_file():
                return f"{name} is not a regular file"
            if file.stat().st_size != about["bytes"]:
                return f"{name} has {file.stat().st_size} bytes, not {about['bytes']}"
            if describe_file(file) != about:
                return f"the checksum of {name} does not match"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    return None
