"""Image files of every kind that is read, written by the formats' own descriptions, and what is refused of them."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from score_sde.data.decoding import DamagedImage, decode_image, stored_size, to_square

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(256, size=(5, 7), dtype=np.uint8)
COLOUR = RANDOM.integers(256, size=(5, 7, 3), dtype=np.uint8)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values, depth, colour_type, *between):
    """PNG without filters. values: of `depth` bits. between: chunks before the pixels."""
    height, width = values.shape[:2]
    rows = values.astype(">u2" if depth == 16 else "u1").reshape(height, -1)
    pixels = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = [chunk(b"IHDR", head), *between, chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def saved(image, kind="PNG", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def over_white(colour, alpha):
    """In floating point, of values up to 255."""
    share = alpha.astype(np.float64) / 255
    return np.round(share * colour + (1 - share) * 255)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_colours_are_as_they_are(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(decode_image(saved(Image.fromarray(COLOUR), kind, **options), 3), COLOUR)


def test_grey_is_repeated_and_colour_is_weighed():
    grey = decode_image(saved(Image.fromarray(GREY)), 3)
    np.testing.assert_array_equal(grey, np.repeat(GREY[..., None], 3, axis=2))
    luma = decode_image(saved(Image.fromarray(COLOUR)), 1)[..., 0]
    np.testing.assert_allclose(luma, COLOUR @ np.array([0.299, 0.587, 0.114]), atol=0.51)


def test_a_photograph_in_jpeg_is_near():
    y, x = np.mgrid[:64, :64]
    smooth = np.stack([2 * x, 2 * y, x + y], axis=2).astype(np.uint8)
    got = decode_image(saved(Image.fromarray(smooth), "JPEG", quality=95, subsampling=0), 3)
    assert np.abs(got.astype(int) - smooth).max() <= 4


@pytest.mark.parametrize(("channels", "colour_type"), [(1, 0), (3, 2), (2, 4), (4, 6)])
def test_sixteen_bits_are_rounded(channels, colour_type):
    values = RANDOM.integers(2**16, size=(6, 9, channels))
    values[0, :3] = [[0] * channels, [128] * channels, [129] * channels]  # 128/257 rounds down, 129/257 up
    values[0, 3] = 65535
    rounded = np.round(values / 257)
    if channels in (2, 4):
        rounded = over_white(rounded[..., :-1], rounded[..., -1:])
    got = decode_image(png(values, 16, colour_type), 3 if channels > 2 else 1)
    np.testing.assert_array_equal(got, rounded)


def test_a_transparent_colour_of_sixteen_bits():
    values = np.array([[[1000, 2000, 3000], [1000, 2000, 3001]]])
    content = png(values, 16, 2, chunk(b"tRNS", struct.pack(">3H", 1000, 2000, 3000)))
    np.testing.assert_array_equal(decode_image(content, 3)[0], [[255, 255, 255], np.round(values[0, 1] / 257)])


def test_alpha_is_over_white():
    alpha = RANDOM.integers(256, size=(5, 7, 1), dtype=np.uint8)
    for colour, channels in ((COLOUR, 3), (GREY[..., None], 1)):
        content = saved(Image.fromarray(np.concatenate([colour, alpha], axis=2)))
        np.testing.assert_array_equal(decode_image(content, channels), over_white(colour, alpha))


def test_a_palette_with_and_without_transparency():
    index = RANDOM.integers(4, size=(5, 7), dtype=np.uint8)
    palette = RANDOM.integers(256, size=(4, 3), dtype=np.uint8)
    plte = chunk(b"PLTE", palette.tobytes())
    np.testing.assert_array_equal(decode_image(png(index, 8, 3, plte), 3), palette[index])
    alpha = np.array([0, 128, 255, 255], np.uint8)
    content = png(index, 8, 3, plte, chunk(b"tRNS", alpha.tobytes()))
    np.testing.assert_array_equal(decode_image(content, 3), over_white(palette, alpha[:, None])[index])


def test_one_bit_and_cmyk():
    bits = GREY > 128
    np.testing.assert_array_equal(decode_image(saved(Image.fromarray(bits)), 1)[..., 0], 255 * bits)
    ink = Image.new("CMYK", (16, 16), (255, 0, 0, 0))  # all cyan
    got = decode_image(saved(ink, "JPEG", quality=100), 3)
    assert np.abs(got.astype(int) - [0, 255, 255]).max() <= 2


def test_the_first_frame_of_an_animation():
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    for kind in ("GIF", "PNG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        content = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert (decode_image(content, 1) == 10).all(), kind


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(Image.fromarray(COLOUR), exif=exif)
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(decode_image(content, 3), np.asarray(ImageOps.exif_transpose(image)))


HUGE = chunk(b"IHDR", struct.pack(">IIBBBBB", 100000, 100000, 8, 0, 0, 0, 0))
DAMAGED = {
    "nothing": (b"", "it is no PNG, JPEG, WEBP, BMP or GIF image"),
    "text": (b"not an image", "it is no PNG"),
    "cut short": (saved(Image.fromarray(COLOUR))[:-40], "it is damaged"),
    "cut short JPEG": (saved(Image.fromarray(COLOUR), "JPEG")[:-30], "it is damaged"),
    "head alone": (b"\x89PNG\r\n\x1a\n", "it is"),
    "a byte changed": (png(GREY, 8, 0)[:45] + b"\xff" + png(GREY, 8, 0)[46:], "it is damaged"),
    "another format": (saved(Image.fromarray(COLOUR), "TIFF"), "it is no PNG"),
    "absurdly large": (
        png(GREY, 8, 0).replace(chunk(b"IHDR", struct.pack(">IIBBBBB", 7, 5, 8, 0, 0, 0, 0)), HUGE),
        "more than 179 million pixels",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged(case):
    content, reason = DAMAGED[case]
    with pytest.raises(DamagedImage, match=reason) as error:
        decode_image(content, 3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_wherever_a_file_ends(kind):
    """It is damaged, unless all pixels were there already."""
    content, refused = saved(Image.fromarray(COLOUR), kind), 0
    whole = decode_image(content, 3)
    for end in range(len(content)):
        try:
            np.testing.assert_array_equal(decode_image(content[:end], 3), whole)
        except DamagedImage:
            refused += 1
    assert refused >= 0.8 * len(content)


class TestSquare:
    def test_the_middle_is_cut_out(self):
        image = RANDOM.integers(256, size=(5, 9, 3), dtype=np.uint8)
        np.testing.assert_array_equal(to_square(image, 5), image[:, 2:7])
        np.testing.assert_array_equal(to_square(image.swapaxes(0, 1), 5), image.swapaxes(0, 1)[2:7])

    def test_area_is_the_mean_rounded_once(self):
        image = RANDOM.integers(256, size=(24, 24, 3), dtype=np.uint8)
        mean = image.reshape(8, 3, 8, 3, 3).astype(np.float64).mean(axis=(1, 3))
        assert np.abs(to_square(image, 8) - mean).max() <= 0.5 + 1e-4

    def test_area_of_parts_of_pixels(self):
        """3 pixels to 2: each is the mean of one and a half."""
        row = np.array([0, 100, 200], np.uint8)
        image = np.repeat(row[None, :, None], 3, axis=0)
        np.testing.assert_array_equal(to_square(image, 2)[0, :, 0], [33, 167])

    @pytest.mark.parametrize("resampling", ["area", "lanczos"])
    def test_there_is_no_aliasing(self, resampling):
        """Stripes finer than the new pixels become grey, which picking pixels would not make them."""
        image = np.zeros((64, 64, 1), np.uint8)
        image[:, ::2] = 255
        inner = to_square(image, 16, resampling)[2:-2, 2:-2].astype(float)
        assert np.abs(inner - 127.5).max() <= 1
        assert image[::4, ::4].min() == 255

    @pytest.mark.parametrize("resampling", ["area", "lanczos"])
    def test_a_constant_stays(self, resampling):
        for size in (3, 8, 20):
            assert (to_square(np.full((9, 9, 3), 77, np.uint8), size, resampling) == 77).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_the_size_needs_no_pixels(kind):
    content = saved(Image.fromarray(COLOUR), kind)
    assert stored_size(content) == (5, 7)
    if kind == "PNG":  # cut short in its pixels
        assert stored_size(content[:60]) == (5, 7)
    with pytest.raises(DamagedImage, match=r"it is no PNG, JPEG, WEBP, BMP or GIF image"):
        stored_size(b"text")
