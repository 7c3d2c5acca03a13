"""The stand-in of the Hub, and a run to put there."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from tests.hub.server import TOKEN, Hub

RUN = Path(__file__).parent.parent / "data" / "run_of_0.1" / "run"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stand-in, and huggingface_hub with this address, a token, an empty cache and no Xet."""
    server = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.close()


@pytest.fixture
def run(tmp_path):
    """A copy of the stored run: a vmamba of two stages, three classes, trained on images."""
    return Path(shutil.copytree(RUN, tmp_path / "run"))
