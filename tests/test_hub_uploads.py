"""What is uploaded while a run trains: the model that is evaluated, and nothing that is half-written or another run's."""

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from conftest import tiny_data
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.utils.hub import PushInProgress

from bmtard_hooks import RobustEvaluation
from bmtard_hooks.sole_writer import LOCK


@pytest.fixture
def uploads(monkeypatch):
    """Take uploads instead of the Hub."""
    made = []

    def upload_folder(self, *, folder_path, path_in_repo=None, ignore_patterns=None, commit_message=None, **kwargs):
        folder = Path(folder_path)
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        files = list(filter_repo_objects(names, ignore_patterns=ignore_patterns))
        model = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
        made.append(SimpleNamespace(place=path_in_repo, files=files, model=model, message=commit_message))
        job = Future()
        job.set_result(None)
        return job

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda *args, **kwargs: SimpleNamespace(repo_id="me/it"))
    return made


class Weights(TrainerCallback):
    """Remembers the weights of every checkpoint, trained and averaged."""

    def __init__(self):
        self.trained, self.averaged, self.trainer = [], [], None

    def on_save(self, args, state, control, model=None, **kwargs):
        self.trained.append(model.head.weight.detach().clone())
        with self.trainer.averaged_weights():
            self.averaged.append(model.head.weight.detach().clone())


PUSH = dict(push_to_hub=True, hub_token="secret", hub_model_id="me/it", method="sat", num_train_epochs=2)
AVERAGES = dict(weight_averaging="ema", averaging_start=0.0, averaging_decay=0.9)


def trained(make_trainer, *callbacks, **options):
    weights = Weights()
    trainer = make_trainer(callbacks=[weights], **{**PUSH, "save_strategy": "epoch", **options})
    weights.trainer = trainer
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train()
    return trainer, weights


@pytest.mark.parametrize(
    "strategy, places",
    [
        ("every_save", [None, None]),
        ("checkpoint", [None, "last-checkpoint", None, "last-checkpoint"]),
        ("all_checkpoints", [None, "checkpoint-4", None, "checkpoint-8"]),
    ],
)
def test_averaged_weights_are_uploaded_with_checkpoints_of_the_trained_ones(make_trainer, uploads, strategy, places):
    trainer, weights = trained(make_trainer, hub_strategy=strategy, **AVERAGES)
    assert [upload.place for upload in uploads] == places
    top = [upload.model["head.weight"] for upload in uploads if upload.place is None]
    below = [upload for upload in uploads if upload.place is not None]
    for epoch, found in enumerate(top):
        assert torch.equal(found, weights.averaged[epoch]) and not torch.equal(found, weights.trained[epoch])
    for epoch, upload in enumerate(below):
        assert torch.equal(upload.model["head.weight"], weights.trained[epoch]) and "optimizer.pt" in upload.files
    saved = load_file(Path(trainer.args.output_dir) / "model.safetensors")
    assert torch.equal(saved["head.weight"], weights.averaged[-1])


def test_nothing_is_uploaded_while_the_upload_before_goes_on(make_trainer, uploads, monkeypatch):
    monkeypatch.setattr(PushInProgress, "is_done", lambda self: False)
    trained(make_trainer, hub_strategy="checkpoint", **AVERAGES)
    assert [upload.place for upload in uploads] == [None, "last-checkpoint"]


def test_without_averaging_the_trained_weights_are_uploaded(make_trainer, uploads):
    _, weights = trained(make_trainer, hub_strategy="checkpoint")
    top = [upload.model["head.weight"] for upload in uploads if upload.place is None]
    assert len(top) == 2 and all(torch.equal(*pair) for pair in zip(top, weights.trained, strict=True))


def test_uploads_go_on_beside_those_before_if_that_is_asked_for(make_trainer, uploads, monkeypatch):
    monkeypatch.setattr(PushInProgress, "is_done", lambda self: False)
    trainer, _ = trained(make_trainer, hub_strategy="every_save", hub_always_push=True, **AVERAGES)
    assert len(uploads) == 2 == len(trainer.push_in_progress.jobs)


@pytest.mark.parametrize("older", [False, True])
def test_nothing_unfinished_and_nothing_of_another_run_is_uploaded(make_trainer, uploads, tmp_path, older):
    other = make_trainer(method="sat", save_strategy="epoch")
    other.train()
    run = tmp_path / "run"
    if older:  # as an older release would have left it
        (run / "previous-1").mkdir()
        (run / "checkpoint-4").rename(run / "previous-1" / "checkpoint-4")
        (run / ".unfinished" / "checkpoint-7").mkdir(parents=True)
        (run / ".unfinished" / "checkpoint-7" / "optimizer.pt").write_text("half")

    class Unfinished(TrainerCallback):
        def on_push_begin(self, args, state, control, **kwargs):
            for folder in ("_unfinished/checkpoint-9", "_unfinished/model"):
                (run / folder).mkdir(parents=True, exist_ok=True)
                (run / folder / "model.safetensors").write_text("half")
            assert (run / LOCK).exists()

    trained(make_trainer, Unfinished(), hub_strategy="every_save", overwrite_output_dir=True)
    assert (run / "_previous-1" / "checkpoint-4").is_dir()
    assert len(uploads) == 2
    for upload in uploads:
        assert set(upload.files) <= {"model.safetensors", "training_args.bin", "README.md"}


def test_saving_the_best_model_uploads_nothing(make_trainer, uploads, tmp_path):
    trainer = make_trainer(**PUSH, hub_strategy="end", **AVERAGES)
    trainer.add_callback(RobustEvaluation(trainer, tiny_data(8, seed=9), "fgsm"))
    trainer.train()
    assert uploads == [] and (tmp_path / "run" / "best_w_robust" / "model.safetensors").exists()
    trainer.push_to_hub()
    assert len(uploads) == 1 and "best_w_robust/model.safetensors" in uploads[0].files


def test_a_model_below_the_run_is_written_where_no_upload_looks(make_trainer, uploads, tmp_path, monkeypatch):
    trainer = make_trainer(**PUSH)
    seen = []
    monkeypatch.setattr(
        "transformers.Trainer._save", lambda self, output_dir, state_dict=None: seen.append(Path(output_dir))
    )
    trainer.save_model(str(tmp_path / "run" / "best"), _internal_call=True)
    trainer.save_model(str(tmp_path / "elsewhere"), _internal_call=True)
    assert seen == [tmp_path / "run" / "_unfinished" / "model", tmp_path / "elsewhere" / "_unfinished" / "model"]
