import weakref

import pytest
import torch

from bmtard_hooks.attacks import PGDSettings, cross_entropy, divergence, margin, pgd
from bmtard_hooks.functional import soften


@pytest.fixture
def inner(vectors):
    config = vectors["inner"]["config"]
    tensors = {
        key: torch.tensor(config[key], dtype=torch.float64) for key in ("W", "b", "x", "randn_draw", "uniform_draw")
    }
    tensors["labels"] = torch.tensor(config["labels"])
    tensors["target"] = soften(torch.tensor(config["teacher_logits"], dtype=torch.float64))
    tensors["forward"] = lambda x: x @ tensors["W"].T + tensors["b"]
    tensors["settings"] = PGDSettings(eps=config["eps"], step_size=config["step"], steps=config["steps"])
    return tensors


CASES = {
    "mtard_ce": ("normal", False, lambda i: cross_entropy(i["labels"])),
    "ard_ce": ("uniform", False, lambda i: cross_entropy(i["labels"])),
    "sat_ce": ("uniform", True, lambda i: cross_entropy(i["labels"])),
    "rslad_kl": ("normal", False, lambda i: divergence(i["target"])),
    "trades_kl": ("normal", False, lambda i: divergence(soften(i["forward"](i["x"])))),
    "score_noextra_lse": ("normal", True, lambda i: lse(i)),
    "score_main_lse": ("uniform", True, lambda i: lse(i)),
}


def lse(inner):
    clean = soften(inner["forward"](inner["x"]))
    return lambda logits: (soften(logits) - clean).square().sum(1)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_inner_loops_match_the_vectors(name, dtype, inner, vectors):
    start, clip_start, objective = CASES[name]
    inner = {k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in inner.items()}
    inner["forward"] = lambda x: x @ inner["W"].T + inner["b"]
    correct = torch.zeros(2, dtype=torch.long)

    def count(logits):
        correct.add_(logits.argmax(1) == inner["labels"])

    settings = inner["settings"].replace(start=start, clip_start=clip_start)
    noise = inner["randn_draw" if start == "normal" else "uniform_draw"]
    adversarial = pgd(inner["forward"], inner["x"], objective(inner), settings, noise=noise, observe=count)
    expected = vectors["inner"]["expected"][name]
    torch.testing.assert_close(adversarial, torch.tensor(expected["x_adv"], dtype=dtype), atol=1e-6, rtol=1e-5)
    assert correct.tolist() == expected["correct_count"]


@pytest.fixture
def attacked():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3 * 4 * 4, 5, generator=generator)
    images = torch.rand(6, 3, 4, 4, generator=generator)
    labels = torch.randint(0, 5, (6,), generator=generator)
    return (lambda x: x.flatten(1) @ weight), images, labels


@pytest.mark.parametrize("norm, eps", [("linf", 0.05), ("l2", 0.5)])
@pytest.mark.parametrize("start", ["normal", "uniform", "zero"])
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_result_is_inside_the_ball_and_the_box(attacked, norm, eps, start, steps):
    forward, images, labels = attacked
    settings = PGDSettings(eps=eps, step_size=eps / 2, steps=steps, norm=norm, start=start)
    adversarial = pgd(forward, images, cross_entropy(labels), settings, generator=torch.Generator().manual_seed(1))
    delta = adversarial - images
    size = delta.abs().amax() if norm == "linf" else delta.flatten(1).norm(dim=1).max()
    assert size <= eps + 1e-6
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert not adversarial.requires_grad


@pytest.mark.parametrize("objective", [cross_entropy, margin])
@pytest.mark.parametrize("norm, eps", [("linf", 0.05), ("l2", 0.5)])
def test_attack_makes_its_objective_larger(attacked, objective, norm, eps):
    forward, images, labels = attacked
    settings = PGDSettings(eps=eps, step_size=eps / 4, steps=10, norm=norm)
    adversarial = pgd(forward, images, objective(labels), settings)
    assert (objective(labels)(forward(adversarial)) > objective(labels)(forward(images))).all()


def test_zero_steps_give_only_the_random_start(attacked):
    forward, images, labels = attacked
    noise = torch.ones_like(images)
    adversarial = pgd(forward, images, cross_entropy(labels), PGDSettings(steps=0), noise=noise)
    torch.testing.assert_close(adversarial, (images + 0.001).clamp(0, 1))


def test_margin_survives_shifted_logits():
    logits, labels = torch.tensor([[3.0, 1.0, 2.0], [0.0, 4.0, 1.0]]), torch.tensor([0, 0])
    expected = torch.tensor([-1.0, 4.0])
    torch.testing.assert_close(margin(labels)(logits), expected)
    torch.testing.assert_close(margin(labels)(logits - 100), expected)


@pytest.mark.parametrize("reduction, alive", [("sum", True), ("mean", False)])
def test_confident_images_are_attacked_in_half_precision(reduction, alive):
    # p = 0.99998; the gradient of a batch mean underflows to 0 in fp16 and such an attack does nothing
    weight = (torch.eye(4) * 12).half()
    images, labels = torch.eye(4).repeat(1024, 1), torch.arange(4).repeat(1024)
    settings = PGDSettings(eps=0.1, step_size=0.1, steps=1, start="zero")

    def objective(logits):
        losses = cross_entropy(labels)(logits.float())
        return losses if reduction == "sum" else losses.mean()

    moved = pgd(lambda x: x.half() @ weight, images, objective, settings)
    assert ((moved != images).float().mean().item() > 0.2) is alive


@pytest.mark.parametrize(
    "options, message",
    [
        ({"eps": 8}, r"eps=8 is outside \(0, 1\]: pixels are in \[0, 1\], pass 8/255"),
        ({"eps": 0}, "eps=0 must be a positive number"),
        ({"eps": float("nan")}, "eps=nan must be a positive number"),
        ({"step_size": -0.1}, "step_size=-0.1 must be a positive number"),
        ({"steps": -1}, "steps=-1 is not a number of steps"),
        ({"steps": 2.5}, "steps=2.5 is not a number of steps"),
        ({"norm": "l1"}, "norm='l1' is unknown: choose one of linf, l2"),
        ({"start": "gauss"}, "start='gauss' is unknown: choose one of normal, uniform, zero"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PGDSettings(**options)


def test_no_activation_outlives_its_step(attacked):
    # the memory of an attack is that of one forward and backward, however many steps it has
    forward, images, labels = attacked
    alive, at_the_start = weakref.WeakSet(), []

    class Held:
        def __init__(self, tensor):
            self.tensor = tensor
            alive.add(self)

    def watched(pixels):
        at_the_start.append(len(alive))
        return forward(pixels)

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        pgd(watched, images, cross_entropy(labels), PGDSettings(steps=4))
        kept = []
        for _ in range(2):  # what would be seen if graphs lived on
            kept.append(watched(images.clone().requires_grad_(True)))
    assert at_the_start[:5] == [0] * 5 and at_the_start[5] > 0
