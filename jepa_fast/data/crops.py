"""The augmentation of I-JEPA: a random resized crop, then the ImageNet normalisation."""

import math
import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# Per-channel statistics of ImageNet's training images, red, green, blue, pixel values in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# How often a crop is drawn anew when it does not fit into the image, before the central one is taken.
CROP_ATTEMPTS = 10


def normalize(pixels: Tensor) -> Tensor:
    """uint8 `[..., 3, H, W]` to float32, same shape and device: pixels / 255, minus mean, over std."""
    if pixels.dtype != torch.uint8 or pixels.ndim < 3 or pixels.shape[-3] != 3:
        raise ValueError(f"pixels: expected uint8 [..., 3, H, W], got {pixels.dtype} {list(pixels.shape)}")
    mean = torch.tensor(IMAGENET_MEAN, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=pixels.device).view(3, 1, 1)
    return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)


def random_crop_box(
    size: tuple[int, int],
    rng: random.Random,
    *,
    scale: tuple[float, float] = (0.3, 1.0),
    aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """A random box (left, top, right, bottom), in pixels, inside an image of `size` (width, height).

    The area is uniform in `scale` times the image's, width / height is log-uniform in `aspect_ratio`
    ("Going Deeper with Convolutions", section 6: the inception crop). Boxes that do not fit are drawn
    again; after 10 of them it is the largest central box whose aspect ratio is in bounds.
    """
    width, height = size
    low, high = math.log(aspect_ratio[0]), math.log(aspect_ratio[1])
    for _ in range(CROP_ATTEMPTS):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * rng.random())
        ratio = math.exp(low + (high - low) * rng.random())
        box_width = round(math.sqrt(area * ratio))
        box_height = round(math.sqrt(area / ratio))
        # Drawn in every attempt, so that a box takes the same numbers whatever came before it.
        left, top = rng.random(), rng.random()
        if 0 < box_width <= width and 0 < box_height <= height:
            x = int(left * (width - box_width + 1))
            y = int(top * (height - box_height + 1))
            return x, y, x + box_width, y + box_height
    box_width = max(1, min(width, round(height * aspect_ratio[1])))
    box_height = max(1, min(height, round(width / aspect_ratio[0])))
    x, y = (width - box_width) // 2, (height - box_height) // 2
    return x, y, x + box_width, y + box_height


def resized_crop(image: Image.Image, box: tuple[int, int, int, int], image_size: int) -> Tensor:
    """The part of an RGB image in `box`, resized to uint8 `[3, image_size, image_size]`.

    Bilinear with antialiasing. Cropping comes first, as in the published loader: resizing a box of
    the whole image would mix in pixels from outside of the box.
    """
    crop = image.crop(box).resize((image_size, image_size), Image.Resampling.BILINEAR)
    # Transposed by NumPy: torch would start its threads for these few bytes.
    return torch.from_numpy(np.ascontiguousarray(np.asarray(crop).transpose(2, 0, 1)))
