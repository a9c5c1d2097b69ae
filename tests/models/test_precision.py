"""What must be float32 is float32, whoever has switched TF32 on before, and however."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from conftest import tiny_data, tiny_net

from bmtard_hooks import evaluate_robustness

STARTS = {
    "nobody": "",
    "older switch": "torch.backends.cuda.matmul.allow_tf32 = True",
    "older switch, off": "torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False",
    "matmul precision": "torch.set_float32_matmul_precision('high')",
    "transformers, on": "torch.backends.fp32_precision = 'tf32'",
    "transformers, off": "torch.backends.fp32_precision = 'ieee'",
    "transformers and accelerate": "torch.backends.fp32_precision = 'tf32'; torch.backends.cuda.matmul.allow_tf32 = True",
}
PROCESS = """
    import json, os, sys, torch
    from bmtard_hooks.models.precision import exact_arithmetic

    def switches():
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        newer = [part.fp32_precision for part in (torch.backends, cudnn, matmul, cudnn.conv, cudnn.rnn)]
        return [*newer, read(lambda: matmul.allow_tf32), read(lambda: cudnn.allow_tf32)]

    def read(switch):
        try:
            return switch()
        except RuntimeError:
            return "mixed"

    for name, start in json.loads(sys.argv[1]).items():
        sys.stdout.flush()
        if os.fork():  # switches cannot be put back to what they were when torch was imported
            os.wait()
            continue
        exec(start)
        before = switches()
        with exact_arithmetic():
            inside = switches()
            with exact_arithmetic():
                nested = switches()
            again = switches()
        print(json.dumps([name, before, inside, nested, again, switches()]))
        break
"""


def test_tf32_is_off_inside_and_as_it_was_afterwards():
    words = [sys.executable, "-c", textwrap.dedent(PROCESS), json.dumps(STARTS)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    found = {name: states for name, *states in map(json.loads, done.stdout.splitlines())}
    assert found.keys() == STARTS.keys(), done.stderr
    for before, inside, nested, again, after in found.values():
        assert inside[1:5] == nested[1:5] == again[1:5] == ["ieee"] * 4
        assert after == before
    on = [name for name, (before, *_) in found.items() if "tf32" in before[2:5]]
    assert len(on) >= 5  # the test would notice if nothing were switched


class Notes(torch.nn.Module):
    """A network that notes with which precision its convolutions would run on a GPU when it gives verdicts on all images."""

    num_classes = 4

    def __init__(self):
        super().__init__()
        self.net, self.verdicts = tiny_net(0), []

    def forward(self, pixel_values):
        if len(pixel_values) == 6 and not torch.is_grad_enabled():
            self.verdicts.append(torch.backends.cudnn.conv.fp32_precision)
        return self.net(pixel_values)


@pytest.mark.parametrize("where", ["in training", "alone"])
def test_every_verdict_is_without_tf32(make_trainer, where):
    student = Notes()
    if where == "alone":
        evaluate_robustness(student, tiny_data(6), ["pgd_sat:steps=2"], checks=False)
    else:
        trainer = make_trainer(student, eval_dataset=tiny_data(6), fold_batch_norm=False)
        trainer.evaluate()
    assert len(student.verdicts) >= 2 and set(student.verdicts) == {"ieee"}
