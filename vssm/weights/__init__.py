"""Trained weights: where they are published, how their names become ours, how they are loaded."""

from vssm.weights.catalog import CATALOG, Weights
from vssm.weights.convert import convert
from vssm.weights.download import DownloadError, download
from vssm.weights.errors import CheckpointError
from vssm.weights.load import LoadReport, load_checkpoint
from vssm.weights.published import fetch_published, find_published, list_published
from vssm.weights.read import read_checkpoint

__all__ = [
    "CATALOG",
    "CheckpointError",
    "DownloadError",
    "LoadReport",
    "Weights",
    "convert",
    "download",
    "fetch_published",
    "find_published",
    "list_published",
    "load_checkpoint",
    "read_checkpoint",
]
