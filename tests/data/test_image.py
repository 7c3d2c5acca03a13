"""What becomes of every kind of image file, each written for real."""

import io
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageSequence

import vssm.data.image
from vssm.data.image import UnreadableImage, open_image, read_image

RED, GREEN, BLUE, GREY = (220, 30, 40), (20, 200, 60), (30, 60, 230), (120, 120, 120)


def quarters(*colours):
    """40x40 pixels, a colour per quarter: top left, top right, bottom left, bottom right."""
    a, b, c, d = (np.broadcast_to(np.uint8(colour), (20, 20, len(colour))) for colour in colours)
    return Image.fromarray(np.vstack([np.hstack([a, b]), np.hstack([c, d])]))


PICTURE = quarters(RED, GREEN, BLUE, GREY)


def colours(image):
    """The middle pixel of each quarter."""
    width, height = image.size
    return [image.getpixel((x * width // 4, y * height // 4)) for y in (1, 3) for x in (1, 3)]


def assert_colours(image, *expected, within=0):
    assert image.mode == "RGB"
    np.testing.assert_allclose(np.array(colours(image)), np.array(expected), atol=within)


@pytest.mark.parametrize(
    ("name", "options", "within"),
    [
        ("a.jpg", {}, 8),
        ("a.jpeg", {"progressive": True}, 8),
        ("a.png", {}, 0),
        ("a.bmp", {}, 0),
        ("a.ppm", {}, 0),
        ("a.tif", {}, 0),
        ("a.tiff", {"compression": "tiff_lzw"}, 0),
        ("a.webp", {"lossless": True}, 0),
        ("a.GIF", {}, 0),
    ],
)
def test_every_suffix_is_read(tmp_path, name, options, within):
    PICTURE.save(tmp_path / name, **options)
    assert_colours(open_image(tmp_path / name), RED, GREEN, BLUE, GREY, within=within)


@pytest.mark.parametrize("adobe", [True, False], ids=["inverted, as Adobe marks it", "without the mark"])
def test_cmyk_jpeg(tmp_path, adobe):
    """CMYK JPEGs hold inverted ink, said by a marker or not: browsers and Pillow take all of them so."""
    buffer = io.BytesIO()
    PICTURE.convert("CMYK").save(buffer, "JPEG", quality=95)
    content = buffer.getvalue()
    at = content.index(b"\xff\xee")
    assert content[at + 4 : at + 9] == b"Adobe"
    if not adobe:
        content = content[:at] + content[at + 2 + int.from_bytes(content[at + 2 : at + 4]) :]
    (tmp_path / "a.jpg").write_bytes(content)
    assert_colours(open_image(tmp_path / "a.jpg"), RED, GREEN, BLUE, GREY, within=8)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_grey_of_16_bits_is_scaled(tmp_path, name):
    values = np.array([[0, 255, 256], [32896, 65279, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    grey = np.asarray(open_image(tmp_path / name, channels=1))
    assert grey.tolist() == [[0, 0, 1], [128, 254, 255]]
    assert np.asarray(open_image(tmp_path / name)).tolist() == np.stack([grey] * 3, -1).tolist()


def test_big_endian_grey_of_16_bits(tmp_path):
    Image.frombytes("I;16B", (3, 1), np.array([0, 0x80FF, 0xFFFF], dtype=">u2").tobytes()).save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as image:
        assert image.mode == "I;16B"
    assert np.asarray(open_image(tmp_path / "a.tif", 1)).tolist() == [[0, 128, 255]]


def png(width, height, bit_depth, colour_type, rows, **chunks):
    """A PNG that Pillow cannot write: `rows` are the packed pixels, `chunks` come before them."""
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    more = b"".join(chunk(kind.encode(), content) for kind, content in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_colour_of_16_bits(tmp_path):
    row = np.array([[0xDC10, 0x1EFF, 0x2800], [0, 0x8000, 0xFFFF]], dtype=">u2").tobytes()
    (tmp_path / "a.png").write_bytes(png(2, 1, 16, 2, [row]))
    assert np.asarray(open_image(tmp_path / "a.png")).tolist() == [[[220, 30, 40], [0, 128, 255]]]


def test_colour_of_16_bits_in_a_tiff(tmp_path):
    """Little-endian, 2x1 pixels, by hand: Pillow does not write such files."""
    pixels = np.array([[0xDC10, 0x1EFF, 0x2800], [0, 0x8000, 0xFFFF]], dtype="<u2").tobytes()
    tags = [(256, 3, 1, 2), (257, 3, 1, 1), (258, 3, 3, 200), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 220)]
    tags += [(277, 3, 1, 3), (278, 3, 1, 1), (279, 4, 1, len(pixels)), (284, 3, 1, 1)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + b"\0" * 4
    content = (b"II*\0" + struct.pack("<I", 8) + directory).ljust(200, b"\0")
    content = (content + struct.pack("<3H", 16, 16, 16)).ljust(220, b"\0") + pixels
    (tmp_path / "a.tif").write_bytes(content)
    assert np.asarray(open_image(tmp_path / "a.tif")).tolist() == [[[220, 30, 40], [0, 128, 255]]]


def test_floats_in_0_to_1(tmp_path):
    Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)).save(tmp_path / "a.tif")
    assert np.asarray(open_image(tmp_path / "a.tif", 1)).tolist() == [[0, 128, 255]]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.array([[0, 255.0]], dtype=np.float32), "float values from 0 to 255; they must be in 0..1"),
        (np.array([[0, np.nan]], dtype=np.float32), "float values from nan to nan"),
        (np.array([[-1, 5]], dtype=np.int32), "32-bit values from -1 to 5; they must be in 0..65535"),
    ],
)
def test_values_without_a_meaning_are_refused(tmp_path, values, words):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImage, match=words):
        open_image(tmp_path / "a.tif")


def transparent(mode):
    """Opaque red, half-transparent black, transparent blue, opaque grey (as RGBA), in one of the ways to store it."""
    image = quarters((*RED, 255), (0, 0, 0, 128), (*BLUE, 0), (*GREY, 255))
    if mode == "LA":
        return image.convert("LA")
    if mode == "P":  # entry 2 is transparent
        paletted = PICTURE.quantize(4)
        paletted.info["transparency"] = paletted.getpixel((10, 30))
        return paletted
    return image


WHITE = (255, 255, 255)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_transparency_is_laid_on_white(tmp_path, name):
    transparent("RGBA").save(tmp_path / name, **({"lossless": True, "exact": True} if name == "a.webp" else {}))
    assert_colours(open_image(tmp_path / name), RED, (127, 127, 127), WHITE, GREY, within=1)
    assert open_image(tmp_path / name, channels=1).getpixel((10, 30)) == 255


def test_grey_with_transparency(tmp_path):
    transparent("LA").save(tmp_path / "a.png")
    red = (88, 88, 88)  # 0.299 R + 0.587 G + 0.114 B
    assert_colours(open_image(tmp_path / "a.png"), red, (127, 127, 127), WHITE, GREY, within=1)


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_palette_with_transparency(tmp_path, name):
    transparent("P").save(tmp_path / name)
    assert_colours(open_image(tmp_path / name), RED, GREEN, WHITE, GREY, within=1)


def test_transparent_colour_of_an_rgb_png(tmp_path):
    PICTURE.save(tmp_path / "a.png", transparency=BLUE)
    assert_colours(open_image(tmp_path / "a.png"), RED, GREEN, WHITE, GREY)


def test_one_bit(tmp_path):
    Image.fromarray(np.array([[True, False], [False, True]])).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "1"
    assert np.asarray(open_image(tmp_path / "a.png", 1)).tolist() == [[255, 0], [0, 255]]
    assert open_image(tmp_path / "a.png").getpixel((1, 0)) == (0, 0, 0)


def test_grey(tmp_path):
    Image.new("L", (4, 3), 77).save(tmp_path / "a.jpg")
    assert open_image(tmp_path / "a.jpg").getpixel((0, 0)) == (77, 77, 77)
    assert open_image(tmp_path / "a.jpg", channels=1).mode == "L"
    with pytest.raises(ValueError, match="1 or 3 channels, not 4"):
        open_image(tmp_path / "a.jpg", channels=4)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_the_first_frame_of_many(tmp_path, name):
    others = [Image.new("RGB", PICTURE.size, colour) for colour in ("yellow", "black")]
    PICTURE.save(tmp_path / name, save_all=True, append_images=others, **({"lossless": True} if "w" in name else {}))
    with Image.open(tmp_path / name) as image:
        assert len(list(ImageSequence.Iterator(image))) == 3
    assert_colours(open_image(tmp_path / name), RED, GREEN, BLUE, GREY)


# Which quarter of the stored picture comes to lie at the top left, top right, bottom left, bottom right.
TURNS = {1: "0123", 2: "1032", 3: "3210", 4: "2301", 5: "0213", 6: "2031", 7: "3120", 8: "1302"}


@pytest.mark.parametrize("tag", TURNS)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_orientation(tmp_path, suffix, tag):
    """Checked against the definition of the tag: which sides of the picture the first row and column stand for."""
    path = tmp_path / f"a.{suffix}"
    image = PICTURE.crop((0, 0, 40, 36))
    exif = image.getexif()
    exif[0x0112] = tag
    image.save(path, exif=exif, **{"jpg": {"quality": 95}, "webp": {"lossless": True}}.get(suffix, {}))
    found = open_image(path)
    assert found.size == ((36, 40) if tag > 4 else (40, 36))
    stored = (RED, GREEN, BLUE, GREY)
    assert_colours(found, *(stored[int(place)] for place in TURNS[tag]), within=10 if suffix == "jpg" else 0)


@pytest.mark.parametrize("tag", [0, 9, 65535])
def test_an_unknown_orientation_is_upright(tmp_path, tag):
    exif = PICTURE.getexif()
    exif[0x0112] = tag
    PICTURE.save(tmp_path / "a.png", exif=exif)
    assert_colours(open_image(tmp_path / "a.png"), RED, GREEN, BLUE, GREY)


def test_damaged_metadata_does_not_matter(tmp_path):
    PICTURE.save(tmp_path / "a.webp", lossless=True, exif=b"Exif\0\0MM\xe1*\0\0\0\x08")
    assert_colours(open_image(tmp_path / "a.webp"), RED, GREEN, BLUE, GREY)


def test_colour_profiles_are_left_alone(tmp_path):
    swapped = ImageCms.createProfile("XYZ")
    PICTURE.save(tmp_path / "a.png", icc_profile=ImageCms.ImageCmsProfile(swapped).tobytes())
    assert_colours(open_image(tmp_path / "a.png"), RED, GREEN, BLUE, GREY)


def encoded(kind):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.98])
def test_cut_off(tmp_path, kind, share):
    whole = encoded(kind)
    (tmp_path / "a.jpg").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UnreadableImage, match=r"a\.jpg: (damaged image|not an image)"):
        open_image(tmp_path / "a.jpg")


def bomb(path):
    """180 megapixels that nobody decodes: only the header is there."""
    path.write_bytes(png(18000, 10000, 8, 2, []))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_bytes(b""), "empty file"),
        (lambda path: path.write_text("<!DOCTYPE html><html>not found</html>"), "not an image"),
        (lambda path: path.write_bytes(os.urandom(1000)), "not an image"),
        (lambda path: path.mkdir(), "a folder"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.symlink_to("missing.jpg"), "No such file or directory"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
        (lambda path: None, "No such file or directory"),
        (bomb, "more than 178956970 pixels"),
    ],
    ids=["empty", "html", "noise", "folder", "pipe", "device", "broken link", "loop", "missing", "bomb"],
)
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX files")
def test_unreadable(tmp_path, make, words):
    path = tmp_path / "odd name ü.jpg"
    make(path)
    with pytest.raises(UnreadableImage) as raised:
        open_image(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert words in raised.value.reason
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX users")
def test_permission_denied(tmp_path):
    path = tmp_path / "a.png"
    PICTURE.save(path)
    path.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(UnreadableImage, match="Permission denied"):
            open_image(path)
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize(
    "name",
    ["ünïcødé 猫.png", "with space.png", "line\nbreak.png", "-dash.png", "UPPER.PNG", "x" * 250 + ".png", "\udce9.png"],
    ids=["Unicode", "space", "newline", "dash", "upper case", "long", "not UTF-8"],
)
def test_odd_names(tmp_path, name):
    PICTURE.save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / name)
    assert_colours(open_image(tmp_path / name), RED, GREEN, BLUE, GREY)


def test_a_large_jpeg_is_decoded_smaller(tmp_path):
    image = PICTURE.resize((1000, 800), Image.Resampling.NEAREST)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    sizes = {400: (400, 500), 401: (800, 1000), 200: (200, 250), 100: (100, 125), 1: (100, 125)}
    for min_side, size in sizes.items():
        found = open_image(tmp_path / "a.jpg", min_side=min_side)
        assert found.size == size
        assert_colours(found, BLUE, RED, GREY, GREEN, within=8)
    image.save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png", min_side=100).size == (1000, 800)


def test_a_hundred_megapixels_in_bounded_memory(tmp_path):
    """As a model's input of 224 x 224 is read. In full this image takes 400 MB, at 1/8 it takes 6."""
    Image.new("RGB", (12500, 8000), RED).save(tmp_path / "a.jpg", quality=50)
    code = (
        "import resource, runpy, sys\n"
        "open_image = runpy.run_path(sys.argv[1])['open_image']\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "size = open_image(sys.argv[2], min_side=512).size\n"
        "print(*size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    argv = [sys.executable, "-W", "ignore", "-c", code, vssm.data.image.__file__, tmp_path / "a.jpg"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    width, height, kilobytes = map(int, done.stdout.split())
    assert (width, height) == (1563, 1000)
    assert kilobytes < 60_000


def packed(values, bit_depth):
    """A row of a PNG."""
    if bit_depth >= 8:
        return np.asarray(values, dtype=">u2" if bit_depth == 16 else np.uint8).tobytes()
    bits = "".join(format(value, f"0{bit_depth}b") for value in values)
    return int(bits.ljust(8 * -(-len(bits) // 8), "0"), 2).to_bytes(-(-len(bits) // 8))


@pytest.mark.parametrize("bit_depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_laid_on_white_in_every_depth(tmp_path, bit_depth):
    top = 2**bit_depth - 1
    levels = sorted({0, 1, top // 3, top // 2, top // 2 + 1, top - 1, top})
    eight_bits = {level: level >> 8 if bit_depth == 16 else level * 255 // top for level in levels}
    for transparent in levels:
        row = packed(levels, bit_depth)
        content = png(len(levels), 1, bit_depth, 0, [row], tRNS=struct.pack(">H", transparent))
        (tmp_path / "a.png").write_bytes(content)
        want = [255 if level == transparent else eight_bits[level] for level in levels]
        assert np.asarray(open_image(tmp_path / "a.png", 1)).tolist() == [want]
        assert np.asarray(open_image(tmp_path / "a.png", 3))[0].tolist() == [[value] * 3 for value in want]


@pytest.mark.parametrize("bit_depth", [8, 16])
def test_a_transparent_colour_is_laid_on_white_in_every_depth(tmp_path, bit_depth):
    unit = 1 if bit_depth == 8 else 257
    pixels = [[200, 30, 40], [200, 30, 41], [0, 0, 0], [255, 255, 0]]
    for transparent in pixels:
        values = [value * unit for pixel in pixels for value in pixel]
        content = png(4, 1, bit_depth, 2, [packed(values, bit_depth)], tRNS=packed([v * unit for v in transparent], 16))
        (tmp_path / "a.png").write_bytes(content)
        want = [[255, 255, 255] if pixel == transparent else pixel for pixel in pixels]
        assert np.asarray(open_image(tmp_path / "a.png"))[0].tolist() == want


@pytest.mark.parametrize("bit_depth", [1, 2, 4, 8])
def test_a_transparent_entry_of_a_palette_in_every_depth(tmp_path, bit_depth):
    palette = bytes([255, 0, 0, 0, 0, 255])
    content = png(3, 1, bit_depth, 3, [packed([0, 1, 0], bit_depth)], PLTE=palette, tRNS=bytes([255, 0]))
    (tmp_path / "a.png").write_bytes(content)
    assert np.asarray(open_image(tmp_path / "a.png"))[0].tolist() == [[255, 0, 0], [255, 255, 255], [255, 0, 0]]


def test_a_large_16_bit_grey_without_transparency_is_as_before(tmp_path):
    (tmp_path / "a.png").write_bytes(png(2, 1, 16, 0, [packed([0, 40000], 16)]))
    assert np.asarray(open_image(tmp_path / "a.png", 1)).tolist() == [[0, 156]]


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "gif", "bmp"])
def test_a_file_in_memory_is_read_like_one_on_disk(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6
    PICTURE.crop((0, 0, 40, 30)).save(path, **({"exif": exif} if suffix in ("jpg", "png") else {}))
    for channels in (1, 3):
        found = read_image(path.read_bytes(), "a", channels, 16)
        assert found.mode == {1: "L", 3: "RGB"}[channels]
        assert np.array_equal(np.asarray(found), np.asarray(open_image(path, channels, 16)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "up: empty file"),
        (b"hello", "up: not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "up: not an image"),
    ],
    ids=["empty", "text", "eps"],
)
def test_memory_that_is_no_image(content, words):
    with pytest.raises(UnreadableImage, match=words):
        read_image(content, "up")


def test_an_image_in_memory_of_too_many_pixels_is_not_decoded(monkeypatch):
    content = io.BytesIO()
    PICTURE.save(content, "PNG")
    assert read_image(content.getvalue(), "up", max_pixels=1600).size == (40, 40)
    monkeypatch.setattr(vssm.data.image, "_loaded", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UnreadableImage, match=r"^up: 40 x 40 pixels, more than 0.001599 million; make it smaller$"):
        read_image(content.getvalue(), "up", max_pixels=1599)


def test_a_cut_file_in_memory():
    content = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(content, "PNG")
    with pytest.raises(UnreadableImage, match=r"^up: "):
        read_image(content.getvalue()[:900], "up")
