"""Training data: a folder of images and videos as reproducible random crops.

    dataset = open_folder("photos", image_size=224)       # uint8 [3, 224, 224] per sample
    pixels = normalize(torch.stack([dataset[i] for i in range(16)]))

Needs the project's `data` extra (Pillow, PyAV and the package that carries the sample clips).
"""

from jepa_fast.data.batches import EpochBatches, stream_seed
from jepa_fast.data.crops import IMAGENET_MEAN, IMAGENET_STD, normalize, random_crop_box
from jepa_fast.data.dataset import CropDataset
from jepa_fast.data.folder import open_folder
from jepa_fast.data.sample import sample_clips_folder

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "CropDataset",
    "EpochBatches",
    "normalize",
    "open_folder",
    "random_crop_box",
    "sample_clips_folder",
    "stream_seed",
]
