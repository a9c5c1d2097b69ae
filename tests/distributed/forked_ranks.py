"""Runs a function on ranks forked from one process that has imported everything, as ``accelerate launch`` would start it.

A launcher and two ranks of their own import torch and transformers three times, which costs twenty seconds. The environment of
the ranks is what accelerate's launcher makes of its flags; test_launch_files.py goes through the command itself.
"""

import multiprocessing
import os
import sys
import time
import traceback
from multiprocessing import connection

from accelerate import PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from launching import read_ranks

TWO = ["--multi_gpu", "--num_machines", 1, "--num_processes", 2, "--mixed_precision", "no", "--dynamo_backend", "no"]
ONE = ["--cpu", "--num_machines", 1, "--num_processes", 1, "--mixed_precision", "no", "--dynamo_backend", "no"]

forking = multiprocessing.get_context("forkserver")
forking.set_forkserver_preload(["bmtard_hooks", "transformers.trainer", "datasets", "torch.distributed.fsdp", "timm"])


def run(main, output, *words, flags=TWO):
    """Run ``main(output, *words)`` on every rank that the launcher's flags ask for; the JSON that each rank wrote, in order."""
    output.mkdir(parents=True, exist_ok=True)
    environments = _environments(flags)
    ranks = [forking.Process(target=_run_rank, args=(main, output, words, there)) for there in environments]
    try:
        for rank in ranks:
            rank.start()
        _wait(ranks)
        said = [log.read_text()[-4000:] for log in sorted(output.glob("rank*.log"))]
        assert [rank.exitcode for rank in ranks] == [0] * len(ranks), "\n".join(said)
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    return read_ranks(output, len(ranks))


def _environments(flags):
    """What the launcher adds to the environment of every rank."""
    words = [*map(str, flags), *(["--main_process_port", "0"] if "--cpu" not in flags else []), "script.py"]
    settings, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    if settings.cpu or settings.num_processes == 1:
        return [{**prepare_simple_launcher_cmd_env(settings)[1], "OMP_NUM_THREADS": "1"}]
    shared = {**prepare_multi_gpu_env(settings), "OMP_NUM_THREADS": "1"}
    count = settings.num_processes
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(settings.main_process_port)}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _wait(ranks, seconds=240):
    """Until every rank has ended, or one has failed, for which the others might wait for ever."""
    end = time.monotonic() + seconds
    running = ranks
    while running and not any(rank.exitcode for rank in ranks):
        if not connection.wait([rank.sentinel for rank in running], max(0, end - time.monotonic())):
            return
        running = [rank for rank in running if rank.is_alive()]


def _run_rank(main, output, words, environment):
    os.environ.clear()
    os.environ.update(environment)
    log = os.open(output / f"rank{environment.get('RANK', 0)}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    try:
        main(output, *words)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # without waiting for a rank that waits for this one
    PartialState().destroy_process_group()  # or a rank's threads may abort it at its exit
