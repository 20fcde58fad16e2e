"""Every kind of image file becomes upright 8-bit RGB, or is refused with a reason."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jepa_fast.data.images import UnreadableError, read_image

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
RGB = np.stack([GREY, GREY.T, 255 - GREY], axis=-1)


def read(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm", ".gif"])
def test_grey_becomes_three_equal_channels(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"grey{suffix}"
    Image.fromarray(GREY).save(path)
    assert (read(path) == GREY[..., None]).all()


def test_the_upper_byte_of_16_bit_grey_is_kept(tmp_path: Path) -> None:
    wide = (np.arange(256).reshape(16, 16) * 257).astype(np.uint16)
    path = tmp_path / "wide.png"
    Image.fromarray(wide).save(path)
    assert (read(path) == GREY[..., None]).all()


def test_32_bit_grey_is_taken_as_16_bit(tmp_path: Path) -> None:
    path = tmp_path / "wide.tif"
    Image.fromarray(GREY.astype(np.int32) * 257).save(path)
    assert (read(path) == GREY[..., None]).all()


def test_transparency_is_dropped(tmp_path: Path) -> None:
    alpha = np.full((16, 16, 1), 7, np.uint8)
    Image.fromarray(np.concatenate([RGB, alpha], axis=-1)).save(tmp_path / "rgba.png")
    assert (read(tmp_path / "rgba.png") == RGB).all()


def test_palette_with_transparency(tmp_path: Path) -> None:
    palette = Image.fromarray(RGB).quantize(16)
    palette.save(tmp_path / "palette.png", transparency=bytes(range(16)))
    assert (read(tmp_path / "palette.png") == np.asarray(palette.convert("RGB"))).all()


def test_cmyk(tmp_path: Path) -> None:
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "cmyk.tif")
    assert (read(tmp_path / "cmyk.tif") == RGB).all()


def test_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(GREY > 127).save(tmp_path / "bits.png")
    assert (read(tmp_path / "bits.png") == np.where(GREY > 127, 255, 0)[..., None]).all()


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(1, RGB), (2, RGB[:, ::-1]), (3, RGB[::-1, ::-1]), (6, np.rot90(RGB, -1)), (8, np.rot90(RGB))],
)
def test_exif_orientation(tmp_path: Path, orientation: int, upright: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "photo.png", exif=exif)
    assert (read(tmp_path / "photo.png") == upright).all()


def test_damaged_exif_does_not_lose_the_picture(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "photo.png", exif=b"Exif\x00\x00no TIFF header at all")
    assert (read(tmp_path / "photo.png") == RGB).all()


def test_the_content_counts_and_not_the_suffix(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "photo.jpg", format="PNG")
    assert (read(tmp_path / "photo.jpg") == RGB).all()


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (10, 200)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert (read(tmp_path / "moving.gif") == 10).all()


def test_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "dot.png")
    assert read(tmp_path / "dot.png").tolist() == [[[1, 2, 3]]]


def jpeg_bytes() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"hello" * 100, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (jpeg_bytes()[: len(jpeg_bytes()) // 2], "truncated"),
        (jpeg_bytes()[:20], "not an image|truncated"),
    ],
    ids=["empty", "text", "postscript", "half", "header"],
)
def test_unreadable_content_has_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableError, match=reason):
        read_image(path)


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(UnreadableError, match="floating-point"):
        read_image(tmp_path / "float.tif")


def test_a_header_alone_is_enough_when_nothing_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    path.write_bytes(jpeg_bytes()[: len(jpeg_bytes()) // 2])
    assert read_image(path, decode=False).size == (128, 128)
