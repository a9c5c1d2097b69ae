"""What runs in the process of one contender."""

from __future__ import annotations

import logging
import signal
import traceback
import warnings
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch

from bmtard_hooks.evaluation.environment import device_name
from step.contenders import CONTENDERS
from step.limit import measure_rates, step_flops
from step.loops import PlainLoop, TorchattacksLoop
from step.memory import PeakMemory
from step.pacing import Pacer, Phases
from step.same_kernels import SameKernelsLoop
from step.scene import Scene, bare, make_data, make_networks
from step.trainer_step import train

LOOPS: Mapping[str, Any] = {"plain": PlainLoop, "torchattacks": TorchattacksLoop, "same_kernels": SameKernelsLoop}
COMPILING = 3
"""More steps of warm-up for a contender that compiles."""

REFEREE = "referee"


def work(connection: Connection, scene: Scene, name: str) -> None:
    """Be a contender, or the referee, until the parent says stop; send a traceback if that fails.

    Args:
        connection: to the parent.
        scene: what is trained on what.
        name: of the contender.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children
    warnings.filterwarnings("ignore")
    logging.basicConfig()
    logging.getLogger("bmtard_hooks.models.folding").setLevel(logging.INFO)  # it says so if a network is not folded
    try:
        torch.set_num_threads(scene.threads)
        if name == REFEREE:
            referee(connection, scene)
        else:
            contend(connection, scene, name)
    except EOFError:
        return  # the parent is gone
    except BaseException:
        connection.send(("error", traceback.format_exc()))


def contend(connection: Connection, scene: Scene, name: str) -> None:
    """Make training steps whenever the parent asks for them.

    Args:
        connection: to the parent.
        scene: what is trained on what.
        name: of the contender.
    """
    contender = CONTENDERS[name]
    data = make_data(scene)
    memory = PeakMemory(scene.device)
    networks = make_networks(scene, data)
    phases = Phases(scene.device)
    warm_up = scene.warm_up + (COMPILING if contender.is_compiled else 0)
    pacer = Pacer(connection, scene.device, warm_up, phases, memory)
    pacer.gives_back = scene.gives_back
    if contender.kind == "trainer":
        train(scene, contender.options, networks, data, phases, pacer)
        return
    loop = LOOPS[contender.kind](scene, networks, data, phases)
    pacer.begin()
    loop.step()
    while pacer.step_finished():
        loop.step()


def referee(connection: Connection, scene: Scene) -> None:
    """Count the step's operations, and measure the machine's rates whenever the parent asks.

    Args:
        connection: to the parent, which sends ``("rates", [dtype, …])``.
        scene: what is trained on what.
    """
    data = make_data(scene)
    student, clean_teacher, robust_teacher = (bare(network) for network in make_networks(scene, data))
    flops = step_flops(student, clean_teacher, robust_teacher, data.pixels(slice(0, 2)), scene.batch_size)
    connection.send(("done", {"flops": flops, "device": device_name(torch.device(scene.device))}))
    while True:
        command, dtypes = connection.recv()
        if command == "stop":
            return
        rates = {dtype: measure_rates(dtype, scene.device, scene.batch_size) for dtype in dtypes}
        connection.send(("done", {"rates": rates}))
