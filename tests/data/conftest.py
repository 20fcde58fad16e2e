"""Small media files made on the spot, and the real ones where they are."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jepa_fast.data import sample_clips_folder

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


def picture(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth coloured pattern, uint8 [height, width, 3], different for every seed."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (5 + c) + seed) + np.cos(y / (7 - c) - 0.7 * seed) for c in range(3)]
    return (np.stack(waves, axis=-1) * 60 + 128).astype(np.uint8)


@pytest.fixture
def write_image() -> Callable[..., Path]:
    def write(path: Path, seed: int = 0, **options: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed)).save(path, **options)
        return path

    return write


@pytest.fixture
def write_video() -> Callable[..., Path]:
    av = pytest.importorskip("av", reason="PyAV is not installed")

    def write(
        path: Path, frames: int = 30, *, codec: str = "mpeg4", gop: int = 10, b_frames: int = 2
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.codec_context.gop_size = gop
            stream.codec_context.max_b_frames = b_frames
            for number in range(frames):
                frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture(scope="session")
def sample_clips() -> Path:
    try:
        return sample_clips_folder()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real images and clips in ../shared/data")
    return SHARED_DATA
