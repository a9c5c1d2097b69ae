"""Checkpoints and models that appear whole or not at all, and a disk that is full."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import rotate_checkpoints

from bmtard_hooks.checkpoint_folders import TRAINER_STATE, UNFINISHED, newest_whole, publish, seal
from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.models.pixels import PixelClassifier

logger = logging.getLogger(__name__)

PROCESSOR = "preprocessor_config.json"
FULL_DISK = ("PytorchStreamWriter", "inline_container", "No space left", "File too large", "quota", "I/O error")


class SavesWhole(Trainer):
    """Writes under another name first. A run that is killed at any moment leaves whole checkpoints only."""

    args: BMTARDConfig
    model: Any
    student: PixelClassifier
    _writes_checkpoint = False

    def _get_output_dir(self, trial: Any) -> str:
        directory = super()._get_output_dir(trial)
        return str(Path(directory) / UNFINISHED) if self._writes_checkpoint else directory

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run, name = Path(self._get_output_dir(trial)), f"checkpoint-{self.state.global_step}"
        passing = run / UNFINISHED / name
        if self.args.local_process_index == 0:
            shutil.rmtree(passing, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._note_best(run, name)
        best = self.state.best_model_checkpoint
        with self._clear_of_failure(run, passing):
            self._writes_checkpoint = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._writes_checkpoint = False
            self.state.best_model_checkpoint = best  # transformers looked for it beside the unfinished one
            if self.args.should_save:
                self.state.save_to_json(str(passing / TRAINER_STATE))
            self._publish(passing, run / name)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run / name))
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(run),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=best,
                use_mtime=True,
            )

    def _note_best(self, run: Path, name: str) -> None:
        if self.state.best_global_step:
            best = run / f"checkpoint-{self.state.best_global_step}"
            if best.name == name or best.is_dir():
                self.state.best_model_checkpoint = str(best)

    def _publish(self, passing: Path, final: Path) -> None:
        """Seal and rename: first on the main process, then on machines that do not share its disk."""
        for turn in (self.args.process_index == 0, self.args.local_process_index == 0):
            self.accelerator.wait_for_everyone()
            if turn and passing.is_dir():
                seal(passing)
                publish(passing, final)
                with suppress(OSError):
                    passing.parent.rmdir()  # unless another machine is still there
        self.accelerator.wait_for_everyone()

    def _push_from_checkpoint(self, output_folder: str) -> None:
        if not self._writes_checkpoint:  # uploads go on while training does, from a name that stays
            super()._push_from_checkpoint(output_folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        final = Path(str(self.args.output_dir if output_dir is None else output_dir))
        if state_dict is None and not isinstance(self.model, PreTrainedModel):
            # safetensors refuses channels_last and shared memory, which only pretrained models deal with themselves
            state_dict = _apart(self.model.state_dict())
        if self._writes_checkpoint:
            super()._save(str(final), state_dict)
            self._describe_pictures(final)
            return
        run = Path(str(self.args.output_dir))
        # in the run's own folder: an upload would not recognise one further down as unfinished
        passing = (run if final.resolve().is_relative_to(run.resolve()) else final) / UNFINISHED / "model"
        with self._clear_of_failure(run, passing):
            super()._save(str(passing), state_dict)
            self._describe_pictures(passing)
            if not self.args.should_save:
                return
            for path in sorted(path for path in passing.rglob("*") if path.is_file()):
                place = final / path.relative_to(passing)
                place.parent.mkdir(parents=True, exist_ok=True)
                path.replace(place)
        shutil.rmtree(passing, ignore_errors=True)
        with suppress(OSError):
            passing.parent.rmdir()

    def _describe_pictures(self, directory: Path) -> None:
        """Put an image processor beside a network that came without one, for transformers' pipeline."""
        settings = self.student.processor_settings() if self.processing_class is None else None
        if settings is not None and self.args.should_save:
            (directory / PROCESSOR).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @contextmanager
    def _clear_of_failure(self, run: Path, passing: Path) -> Iterator[None]:
        """Remove what could not be written whole, and say what is left to go on from."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(passing, ignore_errors=True)
            if not isinstance(error, OSError) and not any(word in str(error) for word in FULL_DISK):
                raise
            raise OSError(_failure(run, passing, error, self.state.global_step)) from error
        except BaseException:
            shutil.rmtree(passing, ignore_errors=True)
            raise


def _apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give every name a tensor of its own, so that tied weights are stored, and found again, under each of their names."""
    taken: set[int] = set()
    apart = {}
    for name, value in weights.items():
        value = value.contiguous()
        place = value.untyped_storage().data_ptr()
        apart[name] = value.clone() if place in taken else value
        taken.add(place)
    return apart


def _failure(run: Path, passing: Path, error: Exception, step: int) -> str:
    free = shutil.disk_usage(run if run.is_dir() else Path.cwd()).free / 1e6
    whole, _ = newest_whole(run)
    kept = (
        f"{whole.name} is whole: make room (save_total_limit=2 keeps two checkpoints), then pass resume_from_checkpoint=True"
        if whole is not None
        else "no checkpoint was written before"
    )
    reason = str(error).strip().splitlines()[0]
    return (
        f"step {step}: {passing.name} could not be written to {run} ({reason}; {free:.0f} MB are free there). What was begun is "
        f"removed and training stopped. {kept[0].upper()}{kept[1:]}"
    )
