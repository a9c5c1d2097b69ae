"""Starts trainings in forks, kills them, and reads what the last one left behind."""

import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

FOLDER = Path(__file__).parent


class Forks:
    """A process that forks trainings.

    Use as a context manager.
    """

    def __enter__(self):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "default",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._server = subprocess.Popen(
            [sys.executable, str(FOLDER / "forked_runs.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, bufsize=1,
        )  # fmt: skip
        self._pids = []
        return self

    def __exit__(self, *exception):
        self.kill()
        self._server.stdin.close()
        self._server.kill()
        self._server.wait()
        self._server.stdout.close()

    def start(self, folder, ranks=1, **options):
        """Start a training; returns at once."""
        if self._pids:  # of a test that failed
            self.kill()
            self.wait()
        run = {"folder": str(folder), **options}
        order = {"run": run, "ranks": ranks, "port": free_port()}
        print(json.dumps(order), file=self._server.stdin, flush=True)
        self._pids = json.loads(self._server.stdout.readline())
        return self._pids

    def signal(self, number, ranks=None, group=False):
        """Send a signal to the processes of the training that runs, or to their whole groups."""
        for rank, pid in enumerate(self._pids):
            if ranks is None or rank in ranks:
                with suppress(ProcessLookupError):
                    (os.killpg if group else os.kill)(pid, number)

    def kill(self):
        """Kill everything that the training started."""
        self.signal(signal.SIGKILL, group=True)

    def wait(self, timeout=120.0):
        """Wait for the training to end; its ranks' exit codes, None if it still runs."""
        if not select.select([self._server.stdout], [], [], timeout)[0]:
            return None
        statuses = json.loads(self._server.stdout.readline())
        self._pids = []
        return statuses

    def finish(self, folder, ranks=1, **options):
        """Run a training to its end and return its result, which is the same on every rank."""
        self.start(folder, ranks, **options)
        codes = self.wait()
        assert codes == [0] * ranks, (codes, said(folder))
        return results(folder, ranks)


def results(folder, ranks=1):
    """Read what every rank wrote; they must agree."""
    found = [json.loads((Path(folder) / f"result{rank}.json").read_text()) for rank in range(ranks)]
    assert all(other["weights"] == found[0]["weights"] for other in found)
    return found[0]


def said(folder):
    """Read the end of the logs."""
    return "\n".join(path.read_text()[-3000:] for path in sorted(Path(folder).glob("log*.txt")))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def survive(forks, folder, rng, straight, *, kills, ranks=1, **options):
    """Kill trainings at random moments, start them again, and compare each that comes to its end with the straight one.

    Every second kill comes after a random time, the others at a random operation on the files of the run, as while a
    checkpoint is being written.

    Args:
        forks: where trainings run.
        folder: for the runs.
        rng: of the moments.
        straight: result of the run that is not killed.
        kills: how many.
        ranks: processes of a training.
        **options: of the training.

    Returns:
        How many runs were finished in the end, none of them different.
    """
    finished, survived, attempts = 0, 0, 0
    while survived < kills or attempts:
        run = Path(folder) / f"run{finished}"
        attempts += 1
        codes = _once(forks, run, rng, straight, survived % 2 if survived < kills else None, ranks, options)
        if codes == [0] * ranks:
            differs = what_differs(straight, results(run, ranks))
            assert differs == {}, f"after {attempts} attempts: {differs}"
            finished, attempts = finished + 1, 0
        else:
            assert -signal.SIGKILL in codes, (codes, said(run))
            survived += 1
        assert attempts < 50, said(run)
    return finished


def _once(forks, run, rng, straight, way, ranks, options):
    die_at = rng.randint(1, 1 + straight["file_events"] // 2) if way == 1 else None
    forks.start(run, ranks, die_at_file_event=die_at, **options)
    if way == 1 and ranks > 1:
        return wait_for_one(forks, ranks)
    codes = forks.wait(rng.uniform(0.05, 0.6) * straight["seconds"] if way == 0 else 120.0)
    if codes is None:
        forks.kill()
        codes = forks.wait()
    return codes


def what_differs(one, other):
    """Name what two results disagree about."""
    keys = ("weights", "state", "callbacks", "logs", "early", "best", "steps")
    return {key: (one[key], other[key]) for key in keys if one[key] != other[key]}


def wait_for_one(forks, ranks):
    """Wait until a rank has died, then end the others, as a launcher does."""
    while True:
        codes = forks.wait(0.05)
        if codes is not None:
            return codes
        if any(_is_dead(pid) for pid in forks._pids):
            forks.kill()
            return forks.wait()
        time.sleep(0.05)


def _is_dead(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def seeded(name):
    """A source of random moments that differs between tests and not between runs."""
    return random.Random(name)
