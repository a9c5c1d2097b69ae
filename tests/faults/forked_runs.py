"""Runs trainings in forked children of one process that has imported everything, so that killing one costs no start.

Reads one JSON line per training from stdin, writes one line with the children's pids when they run and one with their exit
statuses when all have ended. Started by ``Forks`` of killing.py.
"""

import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import killable_run
import torch


def child(order, rank):
    ranks = order.get("ranks", 1)
    if ranks > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        os.environ.update({name: str(value) for name, value in names.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(order["port"]), ACCELERATE_USE_CPU="true")
    os.setpgid(0, 0)
    log = Path(order["run"]["folder"]) / f"log{rank}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    try:
        killable_run.run(rank=rank, **order["run"])
    except SystemExit as error:
        return int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main():
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # every training collects garbage, and would look through all imported modules each time
    say = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        order = json.loads(line)
        pids = []
        for rank in range(order.get("ranks", 1)):
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                code = 1
                try:
                    code = child(order, rank)
                finally:
                    sys.stdout.flush()
                    os._exit(code)
            pids.append(pid)
        print(json.dumps(pids), file=say, flush=True)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps(statuses), file=say, flush=True)


if __name__ == "__main__":
    main()
