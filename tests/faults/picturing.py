"""Pictures of every kind, and data sets with one broken row."""

import io

import datasets
import numpy as np
from conftest import tiny_data
from PIL import Image
from torch.utils.data import Dataset

COUNT, AT = 8, 5
"""Rows of a data set, and the broken one among them."""


def pixels(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (8, 8, *shape)).astype(dtype)


def coded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(image, kind, **options):
    """A picture as it comes from a file, not yet decoded."""
    return Image.open(io.BytesIO(coded(image, kind, **options)))


def with_alpha(mode, alpha):
    image = Image.fromarray(pixels(3)).convert(mode[:-1]).convert(mode)
    image.putalpha(Image.fromarray(np.full((8, 8), alpha, dtype=np.uint8)))
    return image


def palette(alpha=None):
    image = Image.fromarray(pixels(3)).quantize(16)
    if alpha is not None:
        image.info["transparency"] = bytes([alpha] * 16)
    return image


def noted(image, transparency):
    image.info["transparency"] = transparency
    return image


def sixteen(kind="<u2", values=(0, 128, 129, 257, 32896, 65406, 65407, 65535)):
    return np.tile(np.array(values, dtype=kind), (8, 1))


def rows_with(image, label=None):
    rows = [
        {"image": row["pixel_values"], "label": int(row["labels"])}
        for row in map(tiny_data(COUNT).__getitem__, range(COUNT))
    ]
    rows[AT] = {"image": image, "label": rows[AT]["label"] if label is None else label}
    return rows


class Listed(Dataset):
    """A map-style data set of rows that were made before."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def hub_rows(files, labels=None):
    names = datasets.ClassLabel(names=list("abcd"))
    features = datasets.Features(
        {"image": datasets.Image(), "label": names if labels is None else datasets.Value("string")}
    )
    table = {
        "image": [{"bytes": content, "path": None} for content in files],
        "label": labels or [i % 4 for i in range(len(files))],
    }
    return datasets.Dataset.from_dict(table, features=features)


def hub_rows_with(content):
    files = [coded(Image.fromarray(pixels(3, seed=seed)), "PNG") for seed in range(COUNT)]
    files[AT] = content
    return hub_rows(files)


def pages(kind):
    frames = [Image.fromarray(pixels(3, seed=seed)) for seed in (0, 1)]
    return opened(frames[0], kind, save_all=True, append_images=frames[1:])


COLOURS, GREY = Image.fromarray(pixels(3)), Image.fromarray(pixels())
