"""Who is measured: a user's loops, the Trainer with one setting after another, and its kernels without it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from bmtard_hooks import BMTARDConfig
from bmtard_hooks.config import _has_fast_bf16


@dataclass(frozen=True)
class Contender:
    """One way to make the same step.

    Args:
        name: its name on the command line and in the results.
        kind: ``plain``, ``torchattacks``, ``trainer`` or ``same_kernels``.
        options: changes to the default ``BMTARDConfig``.
        environment: variables of its process.
        role: ``reference``, ``default``, ``fast`` (settings for speed), ``ablation`` (something switched off) or ``bare``.
    """

    name: str
    kind: str = "trainer"
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    role: str = "fast"

    @property
    def dtype(self) -> str:
        """Number format of the convolutions, which decides which limit counts."""
        return "bfloat16" if self.options.get("bf16") else "float32"

    @property
    def is_compiled(self) -> bool:
        """Whether the first steps compile."""
        return bool(self.options.get("torch_compile"))


_COMPILED = {"torch_compile": True}
_KEPT_PAGES = {
    "THP_MEM_ALLOC_ENABLE": "1",  # torch asks Linux for large pages
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),  # the C library gives pages of large tensors back at every free otherwise
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
}
_MODES = {"reduce_overhead": "reduce-overhead", "max_autotune": "max-autotune-no-cudagraphs"}

CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        Contender("plain", "plain", role="reference"),
        Contender("torchattacks", "torchattacks", role="reference"),
        Contender("default", role="default"),
        Contender("compiled", options=_COMPILED),
        Contender("kept_pages", environment=_KEPT_PAGES),
        Contender("kept_pages_compiled", options=_COMPILED, environment=_KEPT_PAGES),
        Contender("bf16", options={"bf16": True}),
        Contender("bf16_compiled", options={"bf16": True, **_COMPILED}),
        *(Contender(name, options={**_COMPILED, "torch_compile_mode": mode}) for name, mode in _MODES.items()),
        *(
            Contender(f"bf16_{name}", options={"bf16": True, **_COMPILED, "torch_compile_mode": mode})
            for name, mode in _MODES.items()
        ),
        Contender("unfolded", options={"fold_batch_norm": False}, role="ablation"),
        Contender("nchw", options={"channels_last": False}, role="ablation"),
        Contender("same_kernels", "same_kernels", role="bare"),
    )
}


def sensible_names(device: str) -> list[str]:
    """Choose the contenders that make sense on a device, in the order of the table."""
    left_out = {"reduce_overhead", "max_autotune"}  # with bf16 only, unless asked for
    if device != "cpu":
        left_out |= {name for name, contender in CONTENDERS.items() if contender.environment}
    if device == "cpu":
        left_out |= {name for name, contender in CONTENDERS.items() if "torch_compile_mode" in contender.options}
        if not _has_fast_bf16():
            left_out |= {name for name, contender in CONTENDERS.items() if contender.dtype == "bfloat16"}
    return [name for name in CONTENDERS if name not in left_out and not missing_options(name)]


def missing_options(name: str) -> list[str]:
    """Name the options of a contender that this version of the library does not have."""
    known = {option.name for option in fields(BMTARDConfig)}
    return [option for option in CONTENDERS[name].options if option not in known]


def check_names(names: Sequence[str], device: str) -> None:
    """Refuse contenders that cannot run.

    Raises:
        ValueError: for an unknown name, an option that the library lacks, or a mode that needs a GPU.
    """
    for name in names:
        if name not in CONTENDERS:
            raise ValueError(f"contender {name!r} is unknown: choose from {', '.join(CONTENDERS)}")
        if missing_options(name):
            raise ValueError(f"contender {name!r} needs {', '.join(missing_options(name))}, which BMTARDConfig lacks")
        if CONTENDERS[name].options.get("torch_compile_mode") == "reduce-overhead" and device == "cpu":
            raise ValueError(f"contender {name!r} is about CUDA graphs: it needs --device cuda")


def environment_of(threads: int) -> dict[str, str]:
    """Environment of a child: so many threads, which sleep while they wait, and no network."""
    count = str(threads)
    settings = {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OMP_WAIT_POLICY": "passive",
        "HF_HUB_OFFLINE": "1",
    }
    if torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        settings["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]  # with several the Trainer would use DataParallel
    return settings
