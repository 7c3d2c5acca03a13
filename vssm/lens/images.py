"""The images that can be looked at: photographs that installed packages bring along, and a few uploads in memory."""

import secrets
from collections import OrderedDict
from pathlib import Path
from threading import Lock

from PIL import Image

from vssm.data.image import UnreadableImage, open_image, read_image
from vssm.data.photographs import photographs
from vssm.lens.refused import Refused

__all__ = ["MAX_BYTES", "MAX_PIXELS", "Images", "bundled"]

MAX_BYTES = 20 << 20
MAX_PIXELS = 40_000_000
KEPT = 4


def bundled() -> dict[str, Path]:
    """Photographs of installed packages by name, the one to begin with first; none where there are none."""
    try:
        return {path.stem: path for path in photographs()}
    except ValueError:  # the page then begins with the request for an image
        return {}


class Images:
    """Bundled photographs by name, and the last uploads by an unguessable name.

    An upload is kept as it came, in memory only, until KEPT newer ones have come or the process ends.
    """

    def __init__(self, samples: dict[str, Path], max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS):
        self.samples, self.max_bytes, self.max_pixels = samples, max_bytes, max_pixels
        self._uploads: OrderedDict[str, bytes] = OrderedDict()
        self._lock = Lock()

    def add(self, content: bytes) -> tuple[str, tuple[int, int], list[str]]:
        """The name of an upload, its width and height, and the names of the uploads that were dropped for it.

        Refused for what is too large, and for what is no image that can be read.
        """
        self.check_bytes(len(content))
        image = self._decoded(content, 3, None)
        name = f"upload-{secrets.token_urlsafe(12)}"
        with self._lock:
            self._uploads[name] = content
            dropped = [self._uploads.popitem(last=False)[0] for _ in range(len(self._uploads) - KEPT)]
        return name, image.size, dropped

    def check_bytes(self, count: int) -> None:
        if count > self.max_bytes:
            limit = f"{self.max_bytes / (1 << 20):g} MB"
            raise Refused(f"the file is larger than {limit}; make the image smaller", 413)

    def read(self, name: str, channels: int = 3, min_side: int | None = None) -> Image.Image:
        """The image as `vssm predict` reads it. Refused for a name that is not, or no longer, there."""
        if name in self.samples:
            try:
                return open_image(self.samples[name], channels, min_side)
            except UnreadableImage as error:
                raise Refused(f"{name}: {error.reason}") from error
        with self._lock:
            content = self._uploads.get(name)
            if content is None:
                raise Refused("the image is no longer kept here; choose it again", 404)
            self._uploads.move_to_end(name)
        return self._decoded(content, channels, min_side)

    def _decoded(self, content: bytes, channels: int, min_side: int | None) -> Image.Image:
        try:
            return read_image(content, "upload", channels, min_side, self.max_pixels)
        except UnreadableImage as error:
            raise Refused(f"the image cannot be used: {error.reason}") from error
