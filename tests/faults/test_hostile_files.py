"""Files with weights that others made: their code never runs, their claims are never believed, and they are refused by name."""

import json
import shutil

import pytest
import torch
from conftest import tiny_net
from forging import forge_code
from safetensors.torch import save_file

from bmtard_hooks import create_model, load_teacher
from bmtard_hooks.checkpoint_folders import seal
from bmtard_hooks.models.checkpoints import load_weights, read_state_dict


@pytest.mark.parametrize("style", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w"])
def test_pickle_with_code_is_refused_unrun(style, name, tmp_path, canary, refused):
    path = forge_code(tmp_path / name, canary, style)
    for call in (
        lambda: read_state_dict(path),
        lambda: load_weights(tiny_net(), path),
        lambda: load_teacher("resnet8_cifar", path, num_classes=4),
    ):
        refused(call, "reading it would run code from the file. Save model.state_dict", path)


@pytest.mark.parametrize("style", ["zip", "legacy", "pickle"])
def test_pickle_that_is_called_safetensors_is_refused_unrun(style, tmp_path, canary, refused):
    path = forge_code(tmp_path / "w.safetensors", canary, style)
    refused(lambda: read_state_dict(path), "is called safetensors but was written by torch.save", path)


@pytest.fixture
def directory(tmp_path):
    """A model as ``save_pretrained`` leaves it."""
    path = tmp_path / "model"
    create_model("resnet8_cifar", 4).backbone.save_pretrained(path)
    return path


@pytest.mark.parametrize("style", ["zip", "legacy", "pickle"])
def test_pickle_in_a_directory_is_refused_unrun(style, directory, canary, refused):
    (directory / "model.safetensors").unlink()
    forge_code(directory / "pytorch_model.bin", canary, style)
    for load in (create_model, load_teacher):
        refused(lambda load=load: load(str(directory)), "was refused.*would run code", directory)


def test_other_ways_into_a_directory_are_closed(directory, canary, refused):
    (directory / "model.safetensors").unlink()
    forge_code(directory / "pytorch_model.bin", canary)
    for prefix in ("local-dir:", "local_dir:"):
        refused(lambda prefix=prefix: create_model(f"{prefix}{directory}", 4), "is not a directory with a saved model")
    for prefix in ("hf-hub:", "hf_hub:"):
        refused(
            lambda prefix=prefix: create_model(f"{prefix}owner/name", 4), "hub:owner/name", kind=(ValueError, OSError)
        )


@pytest.mark.parametrize(
    "options", [{"checkpoint_path": "FILE"}, {"pretrained": True, "pretrained_cfg_overlay": {"file": "FILE"}}]
)
def test_timm_is_not_given_files_to_read_by_itself(options, tmp_path, canary, refused):
    path = forge_code(tmp_path / "w.pth", canary)
    filled = json.loads(json.dumps(options).replace("FILE", str(path)))
    refused(lambda: create_model("resnet8_cifar", 4, **filled), "timm would read files or addresses by itself")


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"])
def test_config_cannot_name_files_for_timm(key, directory, canary, refused):
    path = forge_code(directory / "notes.pth", canary)
    config = json.loads((directory / "config.json").read_text())
    config["model_args"] = {key: str(path) if key == "checkpoint_path" else {"file": str(path)}}
    (directory / "config.json").write_text(json.dumps(config))
    refused(lambda: create_model(str(directory)), f"config.json of .* set {key}", directory)


@pytest.mark.parametrize("architecture", ["local-dir:DIRECTORY", "hf-hub:owner/name", "owner/name", "resnet99_cifar"])
def test_config_cannot_send_timm_elsewhere(architecture, directory, refused):
    config = json.loads((directory / "config.json").read_text())
    config["architecture"] = architecture.replace("DIRECTORY", str(directory))
    (directory / "config.json").write_text(json.dumps(config))
    refused(lambda: create_model(str(directory)), "is not a directory with a saved model|nor an architecture of timm")


def test_command_line_refuses_them_too(directory, tmp_path, canary, refused, monkeypatch):
    import datasets
    from PIL import Image

    from bmtard_hooks.commands.evaluate import evaluate

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abcd"))})
    rows = {"image": [Image.new("RGB", (8, 8))] * 4, "label": [0, 1, 2, 3]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set" / "test-00000-of-00001.parquet")
    path = forge_code(tmp_path / "w.pth", canary)
    (directory / "model.safetensors").unlink()
    forge_code(directory / "pytorch_model.bin", canary)
    common = ["--dataset", str(tmp_path / "set"), "--output_dir", str(tmp_path / "report"), "--attacks", "fgsm"]
    for model in (["--model", str(directory)], ["--model", "resnet8_cifar", "--checkpoint", str(path)]):
        refused(lambda model=model: evaluate([*model, *common]), "would run code from the file")


def test_checkpoint_of_a_training_never_runs_code(make_trainer, tmp_path, canary, record_property):
    make_trainer(save_strategy="steps", save_steps=2, max_steps=2).train()
    whole = tmp_path / "run" / "checkpoint-2"
    assert (whole / "optimizer.pt").is_file()
    read = 0
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "pytorch_model.bin"):
        for style in ("zip", "legacy"):
            copy = tmp_path / f"{name}-{style}" / "checkpoint-2"
            shutil.copytree(whole, copy)
            if name == "pytorch_model.bin":
                next(copy.glob("model*.safetensors")).unlink()
            forge_code(copy / name, canary, style)
            seal(copy)  # as whoever replaces a file would do
            trainer = make_trainer(save_strategy="no", max_steps=3, output_dir=str(copy.parent))
            try:
                trainer.train(resume_from_checkpoint=str(copy))
            except Exception:
                read += 1
            else:
                assert name == "training_args.bin"  # which nothing reads
            assert not canary.exists()
    assert read == 8
    record_property("hostile files refused", read)


# Code in repositories.

CODE = """
from pathlib import Path
Path({canary!r}).touch()
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput
import torch

class OwnConfig(PretrainedConfig):
    model_type = "own"

class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.head = torch.nn.Linear(3, 4)
        self.post_init()
    def forward(self, pixel_values):
        return ImageClassifierOutput(logits=self.head(pixel_values.mean((2, 3))))
"""


def write_repository(path, canary):
    path.mkdir(parents=True)
    automatic = {"AutoConfig": "own.OwnConfig", "AutoModelForImageClassification": "own.OwnModel"}
    config = {"model_type": "own", "architectures": ["OwnModel"], "auto_map": automatic, "num_labels": 4}
    (path / "config.json").write_text(json.dumps({**config, "id2label": {str(i): str(i) for i in range(4)}}))
    (path / "own.py").write_text(CODE.format(canary=str(canary)))
    save_file({"head.weight": torch.zeros(4, 3), "head.bias": torch.zeros(4)}, path / "model.safetensors")


@pytest.mark.parametrize("place", ["hub", "directory"])
def test_code_of_a_repository_runs_only_when_it_is_trusted(place, tmp_path, monkeypatch, record_property):
    canary = tmp_path / "canary"
    if place == "hub":
        revision = "0123456789abcdef0123456789abcdef01234567"
        repository = tmp_path / "cache" / "models--owner--own-net"
        write_repository(repository / "snapshots" / revision, canary)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(revision)
        name = "owner/own-net"
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    else:
        write_repository(tmp_path / "own-net", canary)
        name = str(tmp_path / "own-net")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("nobody must be asked"))
    for trust in ({}, {"trust_remote_code": False}, {"trust_remote_code": None}):
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            create_model(name, 4, **trust)
        assert not canary.exists()
    record_property("hostile files refused", 1)
    model = create_model(name, 4, trust_remote_code=True, mean=[0.5] * 3, std=[0.5] * 3)
    assert canary.exists() and model(torch.zeros(1, 3, 8, 8)).shape == (1, 4)
