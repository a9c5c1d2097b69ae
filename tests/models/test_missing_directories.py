import re
from pathlib import Path

import pytest

from bmtard_hooks import create_model, load_teacher


def test_a_misspelt_directory_is_named_with_those_beside_it(tmp_path, monkeypatch):
    for name in ("robust", "clean"):
        (tmp_path / "outputs" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    near = re.escape(str(Path("outputs", "robust")))
    with pytest.raises(OSError, match=rf"outputs/robst is no directory here \(did you mean {near}\?\), nor a hub id"):
        load_teacher("outputs/robst")
    with pytest.raises(ValueError, match=rf"'./outputs/robst' is not a directory .* \(did you mean {near}\?\)"):
        load_teacher("./outputs/robst")
    with pytest.raises(ValueError, match="did you mean resnet8_cifar"):
        load_teacher("resnet8_cifra")


def test_a_directory_without_a_model_names_those_inside_it(tmp_path):
    create_model("resnet8_cifar", num_classes=2).backbone.save_pretrained(tmp_path / "run" / "checkpoint-7")
    with pytest.raises(ValueError, match=r"without a saved model .* did you mean .*checkpoint-7\?"):
        load_teacher(str(tmp_path / "run"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"without a saved model \(config.json and weights\)$"):
        create_model(str(tmp_path / "empty"))
