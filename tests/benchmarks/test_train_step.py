"""The benchmark of a training step: its arithmetic, its clocks, its contenders, and one run through processes."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import idle_children
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import train_step
from step import limit, pacing, results
from step.child import contend
from step.contenders import CONTENDERS, check_names, environment_of, sensible_names
from step.crew import ChildDied, Crew
from step.loops import PlainLoop
from step.memory import PeakMemory
from step.pacing import Pacer, Phases
from step.same_kernels import SameKernelsLoop
from step.scene import Scene, make_data, make_networks

SCENE = Scene("resnet8_cifar", "resnet8_cifar", "resnet8_cifar", batch_size=4, images=8, side=8)


class Script:
    """The parent's end of a pipe, with all commands known beforehand."""

    def __init__(self, *commands):
        self.commands, self.replies = list(commands), []

    def send(self, message):
        self.replies.append(message)

    def recv(self):
        return self.commands.pop(0)


class Clock:
    """Time that passes when a test says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def process_time(self):
        return 2 * self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pacing, "time", clock)
    return clock


def two_convolutions():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, stride=2, padding=1, bias=False),
        nn.Flatten(),
        nn.Linear(5 * 16, 10),
    )


def test_operations_of_a_step_are_those_counted_by_hand():
    first, second, last = 3 * 4 * 9 * 64 * 2, 4 * 5 * 9 * 16 * 2, 80 * 10 * 2  # of one image's forward
    forward = first + second + last
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    flops = limit.step_flops(two_convolutions(), teacher, teacher, torch.rand(2, 3, 8, 8), batch_size=6)
    assert flops["attack"] == 6 * 10 * 2 * forward  # the pixels need a gradient, the weights do not
    assert flops["student"] == 6 * 2 * (forward + first + 2 * second + 2 * last)  # the other way round
    assert flops["teachers"] == 6 * 2 * 192 * 10 * 2


def test_operations_of_grouped_convolutions_are_counted_by_hand():
    def student():
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.Flatten(), nn.Linear(8 * 36, 10))

    first, second, last = 3 * 4 * 64 * 2, 8 * 9 * 36 * 2, 8 * 36 * 10 * 2
    flops = limit.step_flops(student(), student(), student(), torch.rand(2, 3, 8, 8), batch_size=1)
    assert flops["attack"] == 10 * 2 * (first + second + last)
    assert flops["student"] == 2 * (2 * first + 3 * second + 3 * last)


@pytest.mark.parametrize("batch_size", [2, 7, 128])
def test_operations_grow_with_the_batch_alone(batch_size):
    teacher = two_convolutions()

    def count(images):
        return limit.step_flops(two_convolutions(), teacher, teacher, torch.rand(images, 3, 8, 8), batch_size)

    assert count(2) == pytest.approx(count(5))
    one = limit.step_flops(two_convolutions(), teacher, teacher, torch.rand(2, 3, 8, 8), 1)
    assert count(2) == pytest.approx({name: batch_size * value for name, value in one.items()})


def test_rates_are_operations_over_seconds(monkeypatch):
    monkeypatch.setattr(limit, "_fastest", lambda work, device, seconds: work() is None or 0.5)
    monkeypatch.setattr(limit, "CONVOLUTIONS", ((4, 8),))
    rates = limit.measure_rates("float32", "cpu", batch_size=2)
    assert rates == {
        "convolution 4x8x8": 2 * 2 * 64 * 4 * 4 * 9 / 0.5,
        "matrix product 2048": 2 * 2048**3 / 0.5,
    }


def test_the_best_rate_of_each_operation_counts():
    assert limit.best_of([{"a": 1.0, "b": 5.0}, {"a": 3.0, "b": 4.0}]) == {"a": 3.0, "b": 5.0}
    assert results.limit_seconds({"attack": 6.0, "student": 4.0}, {"a": 3.0, "b": 5.0}) == 2.0


def test_an_inner_part_does_not_count_for_the_outer_one(clock):
    phases = Phases("cpu")
    phases.start()
    clock.now += 1
    with phases.part("attack"):
        clock.now += 2
        with phases.part("data"):
            clock.now += 4
        clock.now += 8
    clock.now += 16
    assert phases.stop() == {"overhead": 17, "attack": 10, "data": 4}


def test_parts_cost_nothing_before_they_are_asked_for(clock):
    phases = Phases("cpu")
    with phases.part("attack"):
        clock.now += 2
    assert phases.seconds == {}


def test_a_step_lasts_from_the_end_of_the_one_before(clock):
    script = Script(("time", 2), ("phases", 1), ("stop", 0))
    pacer = Pacer(script, "cpu", 1, Phases("cpu"), PeakMemory("cpu"))
    asked = []
    pacer.before_phases = lambda: asked.append(clock.now)
    pacer.begin()
    for seconds in (100, 3, 5, 7):
        clock.now += seconds
        goes_on = pacer.step_finished()
    assert not goes_on
    replies = [reply for _, reply in script.replies]
    assert [reply["seconds"] for reply in replies] == [100, 4, 7]
    assert [reply["cpu_seconds"] for reply in replies] == [200, 8, 14]
    assert replies[1]["peak"] >= 0 and replies[2]["phases"] == {"overhead": 7}
    assert asked == [108]


def test_memory_is_what_came_after_the_beginning():
    memory = PeakMemory("cpu")
    memory.reset()
    block = torch.ones(50_000_000, dtype=torch.uint8)
    del block
    assert 40e6 < memory.peak() < 500e6


def test_each_round_begins_with_another_contender():
    assert [train_step.rotated("abc", number) for number in range(4)] == [
        list("abc"),
        list("bca"),
        list("cab"),
        list("abc"),
    ]


def test_sensible_contenders_can_run():
    for device in ("cpu", "cuda"):
        names = sensible_names(device)
        check_names(names, device)
        assert names[:3] == ["plain", "torchattacks", "default"] and names[-1] == "same_kernels"
    assert "bf16_reduce_overhead" in names and CONTENDERS["bf16"].dtype == "bfloat16"


@pytest.mark.parametrize(("name", "reason"), [("fastest", "unknown"), ("bf16_reduce_overhead", "CUDA graphs")])
def test_contenders_that_cannot_run_are_refused(name, reason, capsys):
    with pytest.raises(SystemExit):
        train_step.parse(["--device", "cpu", "--contenders", "plain", name])
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("name", ["plain", "torchattacks", "default", "nchw", "same_kernels"])
def test_contender_makes_steps_and_tells_their_parts(name):
    script = Script(("time", 1), ("phases", 1), ("stop", 0))
    contend(script, replace(SCENE, gives_back=name == "plain"), name)
    assert [kind for kind, _ in script.replies] == ["done"] * 3
    _, timed, looked_into = (reply for _, reply in script.replies)
    assert timed["seconds"] > 0
    assert looked_into["phases"].keys() == set(results.PHASES)
    assert all(seconds > 0 for seconds in looked_into["phases"].values())
    assert sum(looked_into["phases"].values()) >= looked_into["seconds"]  # nothing is left out


def test_the_plain_loop_and_the_bare_loop_take_the_same_steps(monkeypatch):
    data = make_data(SCENE)
    batches = [(data.pixels(slice(start, start + 4)), data.labels[start : start + 4]) for start in (0, 4, 0)]
    loops = [kind(SCENE, make_networks(SCENE, data), data, Phases("cpu")) for kind in (PlainLoop, SameKernelsLoop)]
    loops[1].settings = loops[1].settings.replace(start="zero")
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    for loop in loops:
        loop.batches = iter(batches)
        for _ in batches:
            loop.step()
    plain, bare = loops
    for value, expected in zip(bare.student.parameters(), plain.student.parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4)
    for name in ("robust", "clean"):
        assert float(bare.temperatures[name]) == pytest.approx(plain.temperatures[name])
        assert float(bare.weights[name]) == pytest.approx(plain.weights[name], abs=1e-5)
    assert max(plain.temperatures.values()) > 1 and plain.weights["robust"] != 0.5


def test_children_start_with_their_environment_and_leave_the_parents_alone(monkeypatch):
    monkeypatch.setenv("BENCHMARK_THREADS", "7")
    with Crew({"BENCHMARK_THREADS": "3"}) as crew:
        child, reply = crew.start(idle_children.answers, (), "idle")
        assert reply == {"threads": "3"} and os.environ["BENCHMARK_THREADS"] == "7"
        assert child.ask("time", 5) == {"time": 5}
        _, reply = crew.start(idle_children.answers, (), "with its own", {"BENCHMARK_THREADS": "9"})
        assert reply == {"threads": "9"} and os.environ["BENCHMARK_THREADS"] == "7"
    assert child.process.exitcode == 0
    assert environment_of(2)["OMP_WAIT_POLICY"] == "passive"


def test_a_childs_traceback_ends_the_run():
    with pytest.raises(ChildDied, match="no such student"), Crew({}) as crew:
        crew.start(idle_children.fails, (), "failing")


def test_a_child_that_vanishes_ends_the_run():
    with Crew({}) as crew:
        child, _ = crew.start(idle_children.vanishes, (), "vanishing")
        with pytest.raises(ChildDied, match="exit code 3"):
            child.ask("time", 1)


def test_an_interruption_ends_the_children():
    with pytest.raises(KeyboardInterrupt), Crew({}) as crew:
        child, _ = crew.start(idle_children.answers, (), "idle")
        raise KeyboardInterrupt
    assert child.process.exitcode == -signal.SIGKILL


@pytest.mark.exhaustive
def test_a_small_run_through_processes(tmp_path, capsys):
    path = tmp_path / "kept.json"
    train_step.main(
        "--student resnet8_cifar --clean_teacher resnet8_cifar --robust_teacher resnet8_cifar --contenders plain"
        f" --batch_size 4 --images 8 --rounds 1 --phase_rounds 1 --threads 1 --device cpu --output {path}".split()
    )
    (run,) = json.loads(path.read_text())["runs"].values()
    row = run["contenders"]["plain"]
    assert row["times_as_fast_as_plain"] == 1 and row["peak_megabytes"] > 0
    assert 0 < row["fraction_of_limit"] < 1
    assert (
        "--threads 1" in run["command"]
        and run["threads"] == 1
        and run["commit"]
        and run["packages"]["torch"] == torch.__version__.partition("+")[0]
    )
    assert "of limit" in capsys.readouterr().out
