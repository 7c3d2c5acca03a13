"""Frames of videos and animations, one at a time: memory never holds more than the one that is looked at."""

import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence

from vssm.data.image import DAMAGE, UPRIGHT, UnreadableImage

__all__ = ["VIDEO_SUFFIXES", "Frame", "FrameReader", "frames", "is_video"]

VIDEO_SUFFIXES = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"))
_ANIMATED = frozenset((".apng", ".gif", ".webp"))
# Containers whose head states how long they are; a file that ends this much earlier, in seconds, was cut off.
_TIMED, _MISSING = ("matroska", "mov"), 1.0
# What turns a frame upright, by the degrees anticlockwise that a video's display matrix asks for.
_TURNS = {90: UPRIGHT[8], 180: UPRIGHT[3], 270: UPRIGHT[6]}

_Decoded = Generator[Callable[[], Image.Image], None, None]


@dataclass(frozen=True)
class Frame:
    """One frame of a video, numbered from 0. Its name is VIDEO#NUMBER, the number with five digits or more."""

    video: Path
    number: int
    image: Image.Image

    @property
    def name(self) -> Path:
        return Path(f"{self.video}#{self.number:05d}")


class _Damaged(Exception):
    """What is wrong with a video from here on."""


def is_video(path: Path) -> bool:
    """A file with the suffix of a video, or an animation (GIF, WebP, APNG) of more than one frame."""
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return True
    if suffix not in _ANIMATED or not path.is_file():
        return False
    try:
        with Image.open(path) as image:
            return bool(getattr(image, "is_animated", False))
    except (*DAMAGE, Image.DecompressionBombError):
        return False  # whoever opens it as an image says what is wrong


def frames(path: Path, every: int = 1) -> Generator[Frame | UnreadableImage, None, None]:
    """Frames 0, `every`, 2 x `every`, ... of a video or an animation, decoded as they are asked for, upright.

    A damaged or truncated file gives the frames before the damage and then an UnreadableImage, which names the first
    frame that is missing. One that cannot be opened, whose frames have more pixels than twice
    `PIL.Image.MAX_IMAGE_PIXELS`, or that has no frame, gives the UnreadableImage alone.

    Animations are decoded by Pillow, all else by PyAV, of the extra `video`: ModuleNotFoundError where it is missing.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    number, reason = 0, None
    try:
        for decoded in _decoded(path):
            if number % every == 0:
                yield Frame(path, number, decoded())
            number += 1
    except _Damaged as error:
        reason = str(error)
    except MemoryError:
        reason = "too large for the memory of this machine"
    except DAMAGE as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or "damaged"
    if reason is None and number == 0:
        reason = "no frame in it"
    if reason is not None:
        yield UnreadableImage(path, f"frame {number}: {reason}" if number else reason)


class FrameReader:
    """Frames by their number, each video read once as long as the numbers ascend."""

    def __init__(self) -> None:
        self.video, self.next = Path(), 0
        self.decoded: Iterator[Callable[[], Image.Image]] = iter(())

    def image(self, video: Path, number: int) -> Image.Image:
        """Raises UnreadableImage where there is no such frame."""
        if video != self.video or number < self.next:
            self.video, self.next, self.decoded = video, 0, _decoded(video)
        try:
            for decoded in self.decoded:
                self.next += 1
                if self.next > number:
                    return decoded()
        except (_Damaged, *DAMAGE) as error:
            raise UnreadableImage(video, f"frame {number}: {error}") from None
        raise UnreadableImage(video, f"there is no frame {number}")


def _decoded(path: Path) -> _Decoded:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise _Damaged("not a regular file")
    if found.st_size == 0:
        raise _Damaged("empty file")
    return _animation(path) if path.suffix.lower() in _ANIMATED else _film(path)


def _animation(path: Path) -> _Decoded:
    try:
        opened = Image.open(path)
    except Image.DecompressionBombError:
        raise _Damaged(_too_large()) from None
    with opened as image:
        for frame in ImageSequence.Iterator(image):
            frame.load()
            yield frame.copy


def _film(path: Path) -> _Decoded:
    try:
        import av
        from av.error import FFmpegError
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"{path} needs PyAV to be decoded: pip install 'vssm[video]'", name="av") from None
    # An open file, and no other protocols: what poses as a video must not make the decoder open further files.
    with path.open("rb") as file:
        try:
            container = av.open(file, metadata_errors="replace", options={"protocol_whitelist": "none"})
        except FFmpegError:
            raise _Damaged("not a video, or one whose index is missing (truncated?)") from None
        with container:
            yield from _Film(container).decoded()


class _Film:
    """The first stream of pictures of a container of PyAV."""

    def __init__(self, container: Any):
        self.container = container
        streams = [stream for stream in container.streams.video if not _is_cover(stream)]
        if not streams:
            raise _Damaged("no pictures in it, only sound or text")
        self.stream = streams[0]
        self.end = 0.0  # of the latest packet, in seconds
        _check_pixels(self.stream.codec_context.width, self.stream.codec_context.height)

    def decoded(self) -> _Decoded:
        from av import time_base
        from av.error import FFmpegError

        try:
            for packet in self.container.demux():
                if packet.pts is not None:
                    self.end = max(self.end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream is not self.stream:
                    continue
                if packet.is_corrupt:
                    raise _Damaged("damaged or truncated video")
                yield from map(_image, _intact(packet.decode()))
        except (FFmpegError, _Damaged) as error:
            # The decoder still has frames from before the damage.
            with suppress(FFmpegError, _Damaged):
                yield from map(_image, _intact(self.stream.codec_context.decode(None)))
            raise error if isinstance(error, _Damaged) else _Damaged("damaged or truncated video") from None
        stated, name = (self.container.duration or 0) / time_base, self.container.format.name
        if name.startswith(_TIMED) and stated - self.end > _MISSING:
            raise _Damaged(f"truncated video: it ends after {self.end:.1f} of {stated:.1f} seconds")


def _is_cover(stream: Any) -> bool:
    from av.stream import Disposition

    return bool(int(stream.disposition) & int(Disposition.attached_pic))


def _intact(found: list[Any]) -> Iterator[Any]:
    for frame in found:
        if frame.is_corrupt:
            raise _Damaged("damaged or truncated video")
        _check_pixels(frame.width, frame.height)
        yield frame


def _image(frame: Any) -> Callable[[], Image.Image]:
    def make() -> Image.Image:
        image = frame.to_image()
        turn = _TURNS.get(frame.rotation % 360)
        return image if turn is None else image.transpose(turn)

    return make


def _check_pixels(width: int, height: int) -> None:
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    if limit and width * height > limit:
        raise _Damaged(_too_large())


def _too_large() -> str:
    return f"frames of more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels; make them smaller"
