"""Networks whose logits are a table: images are numbers that say which row of the vectors to answer with."""

import torch

from bmtard_hooks.callbacks.push_scale import PushScale
from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.methods import make_method
from bmtard_hooks.state import DistillationState

VIEWS = {0.25: "nat", 0.5: "adv", 0.0: "nat"}  # the last: clean minus the perturbation


class Scene:
    """One micro-batch of the vectors, seen by a method.

    Args:
        shared: ``shared`` of a file of vectors.
        tmp_path: for the config.
        method: its name.
        labels: other labels than the shared ones.
        **options: of the config.
    """

    def __init__(self, shared, tmp_path, method, labels=None, **options):
        self.logits = {
            name: torch.tensor(value, dtype=torch.float64, requires_grad=name.startswith("s_"))
            for name, value in shared["logits"].items()
        }
        self.method = make_method(BMTARDConfig(output_dir=str(tmp_path), method=method, **options))
        self.batch = {
            "pixel_values": torch.full((2, 1, 1, 1), 0.25, dtype=torch.float64),
            "adv_pixel_values": torch.full((2, 1, 1, 1), 0.5, dtype=torch.float64),
            "labels": torch.tensor(shared["labels"] if labels is None else labels),
            "correct_steps": torch.zeros(2),
        }
        self.state = DistillationState.create(
            self.method.temperatures(),
            self.method.weights,
            per_class={name: [value] * 3 for name, value in self.method.per_class().items()},
        )
        self.student_calls = []

    def answer(self, network, pixels):
        view = VIEWS[round(float(pixels.flatten()[0]), 6)]
        if network == "s":
            self.student_calls.append(view)
        return self.logits[f"{network}_{view}"]

    def run(self):
        """Return the weighted loss, and the gradients of the student's logits."""
        student = lambda pixels: self.answer("s", pixels)  # noqa: E731
        teachers = {
            "robust": lambda pixels: self.answer("tr", pixels),
            "clean": lambda pixels: self.answer("tc", pixels),
        }
        before = self.method.before_attack(student, teachers, self.batch, self.state)
        (batch,) = self.method.prepare(teachers, [{**self.batch, **before}], self.state)
        self.output = self.method.loss_parts(student, teachers, batch, self.state)
        if "push" in self.output.parts:
            losses = {part: value.detach() for part, value in self.output.parts.items()}
            PushScale().on_losses(None, None, None, losses=losses, entropies={}, distillation=self.state)
        weights = self.state.weights
        loss = sum(weights[p] * self.output.coefficients.get(p, 1.0) * v for p, v in self.output.parts.items())
        loss.backward()
        gradients = {}
        for view in ("nat", "adv"):
            found = self.logits[f"s_{view}"].grad
            gradients[view] = torch.zeros(2, 3) if found is None else found
        return loss.item(), gradients


def assert_matches(scene, expected):
    loss, gradients = scene.run()
    assert abs(loss - expected["loss"]) < 1e-6
    for view, gradient in gradients.items():
        wanted = torch.tensor(expected[f"dloss_ds_{view}"], dtype=gradient.dtype)
        torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=0)
