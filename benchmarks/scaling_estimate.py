"""Estimate what communication leaves of several GPUs, from the models' sizes: the table of docs/scaling.md, nothing measured.

    python benchmarks/scaling_estimate.py --step_ms 8.5 20 30

For N GPUs a step takes ``compute + 2 (N - 1) / N * gradients / bandwidth + buffers / bandwidth + latency``: a ring all-reduce of
the gradients that overlaps with nothing, one broadcast of the buffers, and the latency of all messages together. Bandwidth and
latency are assumptions; give those of your machines.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

from scaling import volume


class Machines(NamedTuple):
    """GPUs and what connects them.

    Args:
        gpus: all of them.
        bandwidth: bytes per second that a GPU sends in a ring over its slowest link.
        latency: seconds that the messages of a step wait, in sum.
    """

    gpus: int
    bandwidth: float
    latency: float


ONE_NODE = Machines(8, 100e9, 0.3e-3)
EIGHT_NODES = Machines(64, 25e9, 1e-3)
STUDENTS = ("resnet18_cifar", "mobilenetv2_cifar")


def sent_bytes(gradient_bytes: int, gpus: int) -> float:
    """Count what each GPU sends in a ring all-reduce: ``2 (N - 1) / N`` times the gradients."""
    return 2 * (gpus - 1) / gpus * gradient_bytes


def communication_seconds(sizes: dict[str, int], machines: Machines) -> float:
    """Compute the seconds of a step in which GPUs only talk.

    Args:
        sizes: see ``volume``.
        machines: GPUs and what connects them.
    """
    sent = sent_bytes(sizes["gradient_bytes"], machines.gpus) + sizes["buffer_bytes"] + sizes["scalar_bytes"]
    return sent / machines.bandwidth + machines.latency


def rows(students: Sequence[str], machines: Sequence[Machines], compute: Sequence[float], images: int) -> list[str]:
    """Write the table.

    Args:
        students: timm names.
        machines: GPUs and what connects them.
        compute: seconds of a step of one GPU.
        images: of one GPU in a step.

    Returns:
        Lines of Markdown: for every time of a step the efficiency and the images per second of all GPUs.
    """
    head = ["student", "GPUs", "sent per GPU and step", "communication", *(f"{s * 1e3:g} ms" for s in compute)]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for student in students:
        sizes = volume(student)
        for setting in machines:
            talk = communication_seconds(sizes, setting)
            cells = [
                f"`{student}`",
                str(setting.gpus),
                f"{sent_bytes(sizes['gradient_bytes'], setting.gpus) / 1e6:.1f} MB",
                f"{talk * 1e3:.2f} ms",
                *(f"{s / (s + talk):.0%}, {setting.gpus * images / (s + talk):,.0f}/s" for s in compute),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step_ms", type=float, nargs="+", default=[8.5, 20, 30], help="a step of one GPU, measured")
    parser.add_argument("--images", type=int, default=128, help="images of one GPU in a step")
    options = parser.parse_args()
    print("\n".join(rows(STUDENTS, [ONE_NODE, EIGHT_NODES], [ms / 1e3 for ms in options.step_ms], options.images)))


if __name__ == "__main__":
    main()
