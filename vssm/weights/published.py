"""Published weights by their name in the catalogue: what there is, and the file itself."""

from collections.abc import Callable
from pathlib import Path

from vssm._words import nearest
from vssm.weights.catalog import CATALOG, SHORT_NAMES, Weights, by_hand
from vssm.weights.catalog_networks import NETWORKS
from vssm.weights.download import download
from vssm.weights.transfer import DownloadError

__all__ = ["PREFIX", "fetch_published", "find_published", "list_published", "named_file"]

PREFIX = "catalog:"


def list_published() -> dict[str, Weights]:
    """Name -> file: classifiers by the name of the model, then networks around them as MODEL/NETWORK."""
    return CATALOG | NETWORKS


def find_published(name: str) -> tuple[str, Weights]:
    """The full name and the entry of `name`, which may be a short one: vmamba_tiny for vmamba_tiny_s1l8.

    Raises ValueError with the nearest names.
    """
    model, slash, network = name.removeprefix(PREFIX).partition("/")
    full, known = SHORT_NAMES.get(model, model) + slash + network, list_published()
    if full not in known:
        near = nearest(full, known, "; `vssm weights list` shows all")
        raise ValueError(f"the catalogue has no weights {name!r}{near}")
    return full, known[full]


def fetch_published(
    name: str,
    cache_dir: str | Path | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """The file of `name`, downloaded unless it is in the cache; its SHA-256 is checked at every call.

    Raises ValueError for an unknown name, DownloadError as `vssm.weights.download`, and where the authors give no
    direct address: then the message names the page to download it from.
    """
    full, weights = find_published(name)
    if weights.url is None:
        raise DownloadError(by_hand(full, weights))
    return download(weights.url, cache_dir, weights.sha256, progress)


def named_file(path: str | Path) -> Path:
    """`path` itself, or the downloaded file of catalog:NAME."""
    text = str(path)
    return fetch_published(text) if text.startswith(PREFIX) else Path(path)
