"""Small data sets and networks to go wrong with, and files for command lines."""

import datasets
import numpy as np
import torch
from conftest import tiny_data, tiny_net
from PIL import Image
from torch import nn

from bmtard_hooks import create_model

CLASSES = ("ant", "bee", "cat")


class Answering(nn.Module):
    """A network whose answer is changed before it is given."""

    num_classes = 4

    def __init__(self, change, first=lambda pixels: pixels):
        super().__init__()
        self.change, self.first, self.inner = change, first, tiny_net(0)

    def forward(self, pixel_values):
        return self.change(self.inner(self.first(pixel_values)))


class NormOfOne(nn.Module):
    """Its BatchNorm sees maps of 1x1, so one image has no statistics."""

    num_classes = 4

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Linear(4, 4)

    def forward(self, pixel_values):
        return self.head(self.norm(self.conv(pixel_values)).flatten(1))


class Stream(torch.utils.data.IterableDataset):
    """Rows without a length."""

    def __iter__(self):
        return iter([tiny_data()[index] for index in range(8)])


def pairs(image, label=lambda index: index % 4, count=8):
    """Rows as ``(image, label)``."""
    return [(image(index), label(index)) for index in range(count)]


def good_image(index):
    return torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(index))


def save_world(root):
    """Two saved models, a data set of twelve images in the hub's layout, and things that are none."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name in ("clean", "robust"):
            create_model("resnet8_cifar", len(CLASSES), mean=[0.5] * 3, std=[0.25] * 3).backbone.save_pretrained(
                root / name
            )
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    rows = {"img": [Image.fromarray(image) for image in pixels], "label": [index % 3 for index in range(12)]}
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    (root / "data").mkdir()
    for split in ("train", "test"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(root / "data" / f"{split}.parquet")
    (root / "empty").mkdir()
    (root / "note.txt").write_text("not what you look for")
    return root
