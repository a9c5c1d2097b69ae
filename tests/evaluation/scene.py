"""A small net with images that it mostly gets right, for tests of the evaluator."""

import torch
from conftest import tiny_data, tiny_net

from bmtard_hooks.image_tensors import ImageTensors


def trained():
    """A net and images that it mostly classifies correctly, some of them robustly."""
    net = tiny_net(0, batch_norm=True).eval()
    images = tiny_data(40, seed=3).images
    with torch.no_grad():
        labels = net(images.float() / 255).argmax(1)
    labels[::7] = (labels[::7] + 1) % 4  # clean mistakes
    return net, ImageTensors(images, labels, ["ant", "bee", "cat", "dog"])


def short(**options):
    """The evaluation of the tests: no bar, no checks, AutoAttack's parts at a few steps."""
    return {"progress": False, "checks": False, "batch_size": 16, "device": "cpu", **options}
