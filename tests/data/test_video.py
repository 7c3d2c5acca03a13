"""Frames of videos and animations: which there are, what they show, and where damage ends them."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vssm.data.image import UnreadableImage, as_read, open_image
from vssm.data.sources import find_files, find_frames
from vssm.data.video import Frame, FrameReader, frames, is_video

LEVELS = [10 * number for number in range(1, 21)]


def write_film(path, levels=LEVELS, codec="mpeg4", rotation=0, size=(64, 48), **options):
    """One grey frame per level, the upper left quarter white."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=4)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for number, level in enumerate(levels):
            pixels = np.full((size[1], size[0], 3), level, np.uint8)
            # Noise, so that every frame takes bytes and a cut file has whole frames before the cut.
            pixels[size[1] // 2 :] += np.random.default_rng(number).integers(0, 9, pixels.shape, np.uint8)[
                size[1] // 2 :
            ]
            pixels[: size[1] // 2, : size[0] // 2] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    return path


def write_animation(path, levels=LEVELS):
    pages = [Image.new("RGB", (32, 24), (level, 0, 255 - level)) for level in levels]
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=40, loop=0, lossless=True)
    return path


def numbers(found):
    return [one.number if isinstance(one, Frame) else one.reason for one in found]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng"])
def test_an_animation_frame_by_frame(tmp_path, suffix):
    path = write_animation(tmp_path / f"clip{suffix}")
    assert is_video(path)
    found = list(frames(path, 3))
    assert [one.name.name for one in found[:2]] == [f"clip{suffix}#00000", f"clip{suffix}#00003"]
    assert numbers(found) == [0, 3, 6, 9, 12, 15, 18]
    assert [as_read(one.image, 3, path).getpixel((5, 5))[0] for one in found] == pytest.approx(LEVELS[::3], abs=1)
    assert as_read(found[0].image, 3, path).tobytes() == open_image(path).tobytes()  # as an image it is the first


def test_one_frame_is_an_image(tmp_path):
    for name in ("one.gif", "one.webp", "one.png"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
        assert not is_video(tmp_path / name)
    (tmp_path / "damaged.gif").write_bytes(b"damaged")
    assert not is_video(tmp_path / "damaged.gif") and not is_video(tmp_path / "missing.gif")
    assert is_video(Path("missing.MP4"))


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "mpeg4"), ("a.mov", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx"), ("a.mkv", "libx264")],
)
def test_a_film_frame_by_frame(tmp_path, name, codec):
    path = write_film(tmp_path / name, codec=codec)
    found = list(frames(path))
    assert numbers(found) == list(range(20)) and {one.image.size for one in found} == {(64, 48)}
    assert [one.image.getpixel((55, 10))[0] for one in found] == pytest.approx(LEVELS, abs=6)
    assert numbers(frames(path, 7)) == [0, 7, 14]


def test_a_film_is_upright(tmp_path):
    """The white quarter is at the upper left as stored; a display turned by 90 degrees has it at the lower left."""
    for rotation, corner in ((0, (5, 5)), (90, (5, 58)), (180, (58, 42)), (270, (42, 5))):
        image = next(frames(write_film(tmp_path / "a.mp4", rotation=rotation))).image
        assert image.size == ((64, 48) if rotation % 180 == 0 else (48, 64))
        assert image.getpixel(corner)[0] > 240, rotation
        assert np.asarray(image)[..., 0].mean() < 100


FAST = {"movflags": "faststart"}  # the index before the frames


# Within a frame of VP8 the decoder does not notice what was overwritten.
@pytest.mark.parametrize(
    ("name", "codec", "options", "how"),
    [
        ("a.mp4", "mpeg4", FAST, "cut"),
        ("a.mp4", "libx264", FAST, "cut"),
        ("a.mkv", "libx264", {}, "cut"),
        ("a.webm", "libvpx", {}, "cut"),
        ("a.mp4", "mpeg4", FAST, "overwritten"),
        ("a.mp4", "libx264", FAST, "overwritten"),
        ("a.mkv", "libx264", {}, "overwritten"),
    ],
)
def test_the_frames_before_the_damage(tmp_path, name, codec, options, how):
    path = write_film(tmp_path / name, codec=codec, **options)
    whole = [one.image.tobytes() for one in frames(path)]
    content = bytearray(path.read_bytes())
    middle = len(content) * 3 // 4
    content[middle : None if how == "cut" else middle + 400] = b"" if how == "cut" else b"\xa5" * 400
    path.write_bytes(content)
    *good, last = frames(path)
    assert isinstance(last, UnreadableImage) and last.path == path
    assert 0 < len(good) < 20 and numbers(good) == list(range(len(good)))
    assert last.reason.startswith(f"frame {len(good)}: ") and ("damaged" in last.reason or "truncated" in last.reason)
    assert [one.image.tobytes() for one in good] == whole[: len(good)]


def test_an_animation_cut_off(tmp_path):
    path = write_animation(tmp_path / "a.gif")
    path.write_bytes(path.read_bytes()[:-20])
    *good, last = frames(path)
    assert numbers(good) == list(range(19)) and last.reason.startswith("frame 19: ")


def test_what_is_no_video(tmp_path, monkeypatch):
    for name, content in (("empty.mp4", b""), ("text.avi", b"damaged")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.mp4").mkdir()
    # A playlist that would make the decoder open another file.
    film = write_film(tmp_path / "film.mp4")
    (tmp_path / "list.mp4").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:3,\n{film.as_uri()}\n#EXT-X-ENDLIST\n"
    )
    reasons = {
        "empty.mp4": "empty file",
        "text.avi": "not a video",
        "folder.mp4": "not a regular file",
        "missing.mp4": "No such file or directory",
        "list.mp4": "not a video",
    }
    for name, reason in reasons.items():
        (found,) = frames(tmp_path / name)
        assert isinstance(found, UnreadableImage) and found.reason.startswith(reason), name
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    for path in (film, write_animation(tmp_path / "a.gif")):
        (found,) = frames(path)
        assert found.reason == "frames of more than 600 pixels; make them smaller"
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        next(frames(film, 0))


def test_frames_by_number(tmp_path):
    film, animation = write_film(tmp_path / "a.mp4"), write_animation(tmp_path / "a.gif")
    reader = FrameReader()
    for path, number in ((film, 2), (film, 3), (animation, 4), (film, 9), (film, 1)):
        expected = next(one for one in frames(path) if one.number == number)
        assert reader.image(path, number).tobytes() == expected.image.tobytes()
    with pytest.raises(UnreadableImage, match="there is no frame 20"):
        reader.image(film, 20)


def test_the_extra_is_named(tmp_path, monkeypatch):
    path = write_film(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match=r"a\.mp4 needs PyAV to be decoded: pip install 'vssm\[video\]'"):
        next(frames(path))


def test_videos_are_named_and_not_found_in_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    write_animation(Path("in/a.gif"), LEVELS[:2])
    write_film(Path("in/b.mp4"), LEVELS[:2])
    Image.new("RGB", (8, 8)).save("in/c.png")
    shown = [str(one.name if isinstance(one, Frame) else one) for one in find_frames(["in", "in/*", "in/none.mp4"])]
    assert shown == [
        "in/a.gif", "in/c.png",
        "in/a.gif#00000", "in/a.gif#00001", "in/b.mp4#00000", "in/b.mp4#00001", "in/c.png",
        "in/none.mp4: No such file or directory",
    ]  # fmt: skip
    assert list(find_files(["in/a.gif"])) == [Path("in/a.gif")]
