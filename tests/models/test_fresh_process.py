"""Somebody else's process loads a saved student with transformers alone, but for one import."""

import os
import re
import subprocess
import sys

import pytest

from bmtard_hooks import create_model
from bmtard_hooks.callbacks.model_card import usage


def run(code, directory):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-c", code]
    return subprocess.run(words, cwd=directory, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    create_model("resnet8_cifar", 3, image_size=32).backbone.save_pretrained(root / "student")
    return root


def test_usage_of_the_model_card_works_in_a_process_of_its_own(saved):
    lines = usage(create_model(str(saved / "student")))
    (code,) = re.findall(r"^```python\n(.*?)^```", "\n".join(lines), re.S | re.M)
    assert "import bmtard_hooks" in code
    code = code.replace("DIRECTORY", "student")
    done = run(f"from PIL import Image\nImage.new('RGB', (40, 40)).save('photo.png')\n{code}", saved)
    assert done.returncode == 0 and "LABEL_" in done.stdout, done.stderr


def test_usage_leaves_the_import_out_for_architectures_of_timm():
    lines = "\n".join(usage(create_model("mobilenetv3_small_050", 3)))
    assert "pipeline(" in lines and "import bmtard_hooks" not in lines
