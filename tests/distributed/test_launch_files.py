"""The files for ``accelerate launch``: each can be read, and each that can run on a CPU starts what it says."""

import os
import socket

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from conftest import TinyNet, tiny_net
from launching import FILES, finish, read_ranks, start

KINDS = {  # distributed type, machines, processes, on the CPU, mixed precision
    "cpu": ("NO", 1, 1, True, "no"),
    "single_gpu": ("NO", 1, 1, False, "bf16"),
    "multi_gpu": ("MULTI_GPU", 1, 4, False, "bf16"),
    "multi_node": ("MULTI_GPU", 8, 64, False, "bf16"),
    "fsdp2": ("FSDP", 1, 8, False, "bf16"),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_file_is_read_by_accelerate(name):
    config = load_config_from_file(str(FILES / f"{name}.yaml"))
    kind = config.distributed_type.value, config.num_machines, config.num_processes, config.use_cpu
    assert (*kind, config.mixed_precision) == KINDS[name]
    assert not config.fsdp_config or config.fsdp_config["fsdp_version"] == 2


def test_every_file_is_tested():
    assert {path.stem for path in FILES.glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize(
    "name, flags, option, expected",
    [
        ("cpu", [], None, "no"),
        ("cpu", [], True, "bf16"),  # the recipe's option wins over a file without
        ("single_gpu", [], None, "bf16"),
        ("single_gpu", [], True, "bf16"),
        ("single_gpu", ["--mixed_precision", "no"], False, "no"),
    ],
)
def test_mixed_precision_of_file_flag_and_option(name, flags, option, expected, monkeypatch, make_trainer):
    words = ["--config_file", str(FILES / f"{name}.yaml"), *flags, "script.py"]
    launched, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    _, environment = prepare_simple_launcher_cmd_env(launched)
    for key in environment.keys() - os.environ.keys():
        monkeypatch.setenv(key, environment[key])
    seen = set()
    forward = TinyNet.forward

    def noting(self, pixel_values):
        if self.training:
            seen.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        return forward(self, pixel_values)

    monkeypatch.setattr(TinyNet, "forward", noting)
    trainer = make_trainer(tiny_net(0), use_cpu=True, max_steps=1, **({} if option is None else {"bf16": option}))
    trainer.train()
    assert trainer.accelerator.mixed_precision == expected
    assert seen == {torch.bfloat16 if expected == "bf16" else torch.float32}
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


def test_cpu_file_starts_one_process_in_float32(tmp_path):
    finish(start("train_as_launched.py", tmp_path, flags=["--config_file", FILES / "cpu.yaml"]))
    (found,) = read_ranks(tmp_path, 1)
    assert (found["world size"], found["mixed precision"]) == (1, "no")


@pytest.mark.exhaustive
def test_file_of_several_machines_joins_their_launchers(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--config_file", FILES / "multi_node.yaml", "--num_machines", 2, "--num_processes", 2]
    flags += ["--main_process_ip", "127.0.0.1", "--main_process_port", port]
    finish(*(start("train_as_launched.py", tmp_path, flags=[*flags, "--machine_rank", rank]) for rank in (0, 1)))
    found = read_ranks(tmp_path, 2)
    assert [rank["world size"] for rank in found] == [2, 2] and found[0]["weights"] == found[1]["weights"]
    assert found[0]["mixed precision"] == "bf16"
