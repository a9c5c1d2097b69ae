"""Measure what brings images to the attack: loading, collating, sending, augmenting, without any network.

    python benchmarks/input_pipeline.py --dataset cifar10 --output benchmarks/results/input_pipeline.json

One run measures everything in turns, because machines are noisy: torchvision's transforms image by image, as many scripts
have them, on arrays in memory and on the pictures of the data set; this library's rows one by one, as floats on the host,
augmented in two passes; and what `BMTARDTrainer` does: rows gathered at once, bytes until they are on the device, one pass.
The last is also timed in parts. Printed are images per second of the fastest round; only ratios within one run mean
anything. The seconds to decode a data set, and to read it decoded, are measured too. `--output` keeps the numbers as JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, RandomCrop, RandomHorizontalFlip, ToTensor

from bmtard_hooks import BMTARDConfig, BMTARDTrainer, ImageTensors, PGDCollator
from bmtard_hooks.decoding import IMAGE_COLUMNS, LABEL_COLUMNS, find_column
from bmtard_hooks.evaluation.environment import device_name, package_versions, source_commit
from bmtard_hooks.image_tensors import as_image_tensors
from bmtard_hooks.randomness import keyed_generator

PADDING = 4
REFERENCE = "torchvision transforms on arrays in memory"
ONE_BY_ONE = "one by one, floats on the host, two passes"
NOW = "BMTARDTrainer"


class Transformed(Dataset):
    """Pictures through torchvision's transforms, one by one, as many training scripts do it."""

    def __init__(self, picture: Callable[[int], tuple[Image.Image, int]], count: int) -> None:
        self.picture, self.count = picture, count
        self.transform = Compose([RandomCrop(32, padding=PADDING), RandomHorizontalFlip(), ToTensor()])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.picture(index)
        return self.transform(image), label


class OneByOne(Dataset):
    """Hides from a ``DataLoader`` that rows can be gathered at once."""

    def __init__(self, rows: ImageTensors) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.rows[index]


class AnyImages(nn.Module):
    """Stands in for a network, which this benchmark never asks."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.head = nn.Linear(1, num_classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Classify by brightness."""
        return self.head(pixel_values.mean(dim=(1, 2, 3))[:, None])


def augment_in_two_passes(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crop the whole batch, then choose between it and its mirror image: the same result as ``augment`` in more work."""
    batch, _, height, width = images.shape
    device = images.device
    tops, lefts = (torch.randint(0, 2 * PADDING + 1, (batch,), generator=generator, device=device) for _ in range(2))
    padded = F.pad(images, (PADDING,) * 4)
    rows = tops[:, None] + torch.arange(height, device=device)
    columns = lefts[:, None] + torch.arange(width, device=device)
    numbers = torch.arange(batch, device=device)[:, None, None]
    images = padded.permute(0, 2, 3, 1)[numbers, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    mirrored = torch.rand(batch, generator=generator, device=device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


class Pipelines:
    """The loaders that are compared; each run of one yields batches that are ready for the attack.

    Args:
        pictures: the data set with PIL images.
        data: the same, decoded.
        options: of the command line.
        directory: for the Trainer, which writes nothing there.
    """

    def __init__(self, pictures: Any, data: ImageTensors, options: argparse.Namespace, directory: str) -> None:
        self.pictures, self.data, self.options = pictures, data, options
        self.device = torch.device(options.device)
        alone = PGDCollator()  # floats, as outside the Trainer
        self.now = self._trainer(data, PGDCollator(augment="crop_flip"), directory)
        self.before = self._trainer(OneByOne(data), lambda rows: alone(rows), directory)

    def _trainer(self, rows: Any, collator: Any, directory: str) -> BMTARDTrainer:
        config = BMTARDConfig(
            output_dir=directory,
            method="natural",
            per_device_train_batch_size=self.options.batch_size,
            dataloader_num_workers=self.options.workers,
            dataloader_drop_last=True,
            use_cpu=self.device.type == "cpu",
        )
        return BMTARDTrainer(AnyImages(self.data.num_classes), config, collator, rows)

    def all(self) -> dict[str, Callable[[], Iterable[Tensor]]]:
        """Return each pipeline by name."""
        arrays = self.data.images.permute(0, 2, 3, 1).numpy()
        image, label = (
            find_column(self.pictures.column_names, None, known, what)
            for known, what in ((IMAGE_COLUMNS, "image"), (LABEL_COLUMNS, "label"))
        )

        def stored(index: int) -> tuple[Image.Image, int]:
            row = self.pictures[index]
            return row[image], row[label]

        def in_memory(index: int) -> tuple[Image.Image, int]:
            return Image.fromarray(arrays[index]), int(self.data.labels[index])

        return {
            REFERENCE: lambda: self._torchvision(in_memory),
            "torchvision transforms on pictures": lambda: self._torchvision(stored),
            ONE_BY_ONE: self._one_by_one,
            NOW: self._together,
        }

    def _torchvision(self, picture: Callable[[int], tuple[Image.Image, int]]) -> Iterable[Tensor]:
        loader = DataLoader(
            Transformed(picture, len(self.data)),
            self.options.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=self.options.workers,
            pin_memory=self.device.type == "cuda",
        )
        for images, labels in loader:
            labels.to(self.device, non_blocking=True)
            yield images.to(self.device, non_blocking=True)

    def _one_by_one(self) -> Iterable[Tensor]:
        for index, inputs in enumerate(self.before.get_train_dataloader()):
            images = self.before._prepare_inputs(inputs)["pixel_values"].contiguous(memory_format=torch.channels_last)
            generator = keyed_generator(self.now.args.seed, "augment", index, device=images.device)
            yield augment_in_two_passes(images, generator)

    def _together(self) -> Iterable[Tensor]:
        for index, inputs in enumerate(self.now.get_train_dataloader()):
            yield self.augmented(self.now._prepare_inputs(inputs), index)

    def augmented(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Augment a batch as a training step does."""
        return self.now.crafter.craft(self.now.model, batch, key=(index,), views={})["pixel_values"]

    def parts(self) -> dict[str, Callable[[], Iterable[Any]]]:
        """Return the parts of the Trainer's pipeline by name; a part's input is made before it is timed."""
        loader = self.now.get_train_dataloader().base_dataloader
        some = list(itertools.islice(loader, 8))
        on_device = [self.now._prepare_inputs(batch) for batch in some]
        return {
            "fetch and collate": lambda: loader,
            "send and turn into pixels": lambda: (self.now._prepare_inputs(batch) for batch in itertools.cycle(some)),
            "augment": lambda: (
                self.augmented(batch, index) for index, batch in enumerate(itertools.cycle(on_device))
            ),
        }


def seconds_for(batches: Iterable[Any], count: int, device: torch.device) -> float:
    """Time some batches."""
    began = time.perf_counter()
    for _ in itertools.islice(batches, count):
        pass
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def fastest(
    contenders: dict[str, Callable[[], Iterable[Any]]], options: argparse.Namespace, batches: int
) -> dict[str, float]:
    """Time each contender in every round, and keep its fastest round in images per second."""
    rates: dict[str, float] = {}
    for make in contenders.values():
        seconds_for(make(), 2, torch.device(options.device))  # warms up
    for _ in range(options.rounds):
        for name, make in contenders.items():
            seconds = seconds_for(make(), batches, torch.device(options.device))
            rates[name] = max(rates.get(name, 0.0), batches * options.batch_size / seconds)
    return rates


def same_pixels(pipelines: Pipelines) -> bool:
    """Tell whether the ways of this library give the same batches, bit for bit."""
    some: Sequence[Iterable[Tensor]] = [
        itertools.islice(make(), 3) for make in (pipelines._one_by_one, pipelines._together)
    ]
    return all(torch.equal(before, now) for before, now in zip(*some, strict=True))


def start_seconds(pictures: Any, rounds: int) -> dict[str, float]:
    """Time decoding a whole data set, and reading what was kept of it; the fastest round of each."""
    as_image_tensors(pictures)  # keeps it
    found: dict[str, float] = {}
    for name, keep in (("decoding", False), ("reading what was kept", True)):
        for _ in range(rounds):
            began = time.perf_counter()
            data = as_image_tensors(pictures, keep=keep)
            data.images.view(-1)[::1024].sum()  # a mapped file is read when its pixels are
            seconds = time.perf_counter() - began
            found[name] = round(min(found.get(name, seconds), seconds), 3)
    return found


def main() -> None:
    """Measure, print a table, and keep it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="cifar10", help="hub id or local directory")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--batches", type=int, default=20, help="per round")
    parser.add_argument("--rounds", type=int, default=20, help="the fastest of them counts")
    parser.add_argument("--workers", type=int, default=0, help="processes of every loader")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", help="JSON file")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    pictures = datasets.load_dataset(options.dataset, split="train")
    start = start_seconds(pictures, min(options.rounds, 3))
    with tempfile.TemporaryDirectory() as directory:
        pipelines = Pipelines(pictures, as_image_tensors(pictures), options, directory)
        equal = same_pixels(pipelines)
        parts = pipelines.parts()
        rates = fastest({**pipelines.all(), **parts}, options, options.batches)  # in the same rounds, to be comparable
    for name, seconds in start.items():
        print(f"{name:<50} {seconds:>10.3f} s for {len(pictures)} images")
    for name, rate in rates.items():
        times = "alone" if name in parts else f"{rate / rates[REFERENCE]:.2f} times as fast as {REFERENCE}"
        print(f"{name:<50} {rate:>10.0f} images/s, {times}")
    print(f"{ONE_BY_ONE!r} and {NOW!r} give the same pixels: {equal}")
    if options.output:
        kept = {
            "question": "images per second of the input pipeline alone, one run, without any network",
            "command": "python benchmarks/input_pipeline.py --dataset CIFAR10"
            f" --batch_size {options.batch_size} --batches {options.batches} --rounds {options.rounds}"
            f" --workers {options.workers}",
            "commit": source_commit(),
            "packages": {**package_versions(), "torchvision": torchvision.__version__},
            "device": device_name(torch.device(options.device)),
            "threads": torch.get_num_threads(),
            "timing": f"the machine is shared: the fastest of {options.rounds} rounds, taken in turns",
            "images": len(pictures),
            "image_shape": list(pipelines.data.images.shape[1:]),
            "images_per_second": {name: round(rate) for name, rate in rates.items() if name not in parts},
            "times_as_fast_as_reference": {
                name: round(rate / rates[REFERENCE], 2) for name, rate in rates.items() if name not in parts
            },
            "reference": REFERENCE,
            "images_per_second_of_parts": {name: round(rates[name]) for name in parts},
            "same_pixels": equal,
            "seconds_to_start": start,
        }
        Path(options.output).write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
