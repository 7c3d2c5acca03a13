"""Images and a server that the tests share."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.lens.client import Client


def picture(size=(48, 40), mode="RGB", kind="PNG"):
    """A file of noise, as bytes."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))
    if mode == "I;16":
        image = Image.fromarray(np.random.default_rng(0).integers(0, 65535, size[::-1], dtype=np.uint16))
    else:
        image = image.convert(mode)
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    path = tmp_path_factory.mktemp("samples") / "noise.png"
    path.write_bytes(picture((64, 64)))
    return path


@pytest.fixture(scope="module")
def client(sample):
    with Client(samples={"noise": sample}) as found:
        yield found
