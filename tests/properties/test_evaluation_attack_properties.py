"""The evaluation attacks, with few steps: what they return can be shown to anybody as an adversarial image."""

import torch
from hypothesis import strategies as st
from proving import CHANNELS, KINDS, SEEDS, assert_inside, drawn_images, prove

from bmtard_hooks.attacks import attack_mode
from bmtard_hooks.attacks.apgd import APGD
from bmtard_hooks.attacks.base import Draws, Target
from bmtard_hooks.attacks.fab import FAB
from bmtard_hooks.attacks.gradient import PGD
from bmtard_hooks.attacks.rays import RayS
from bmtard_hooks.attacks.spsa import SPSA
from bmtard_hooks.attacks.square import Square

ATTACKS = {
    "fgsm": PGD(step_size=None, steps=1, start="zero"),
    "pgd": PGD(steps=3, restarts=2),
    "cw_inf": PGD(steps=3, loss="margin"),
    "apgd_ce": APGD(steps=5),
    "apgd_dlr": APGD(loss="dlr", steps=5),
    "apgd_t": APGD(loss="dlr_targeted", steps=4, target_classes=2),
    "fab": FAB(steps=6, target_classes=2),
    "square": Square(queries=40),
    "rays": RayS(queries=50),
    "spsa": SPSA(steps=2, pairs=3),
    "nes": SPSA(estimator="nes", steps=2, pairs=3),
}


class Scene(torch.nn.Module):
    """A small network whose logits can be of any size."""

    def __init__(self, seed, shape, classes, scale):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        inputs = shape[0] * shape[1] * shape[2]
        self.register_buffer("first", torch.randn(inputs, 8, generator=generator) / inputs**0.5)
        self.register_buffer("second", torch.randn(8, classes, generator=generator) * scale)

    def forward(self, pixels):
        return torch.tanh(4 * pixels.flatten(1) @ self.first) @ self.second


@st.composite
def scenes(draw, scales):
    shape = (draw(CHANNELS), draw(st.integers(2, 8)), draw(st.integers(2, 8)))
    model = Scene(draw(SEEDS), shape, draw(st.integers(4, 6)), draw(st.sampled_from(scales)))
    images = drawn_images(draw(SEEDS), (draw(st.integers(1, 6)), *shape), draw(KINDS))
    labels = torch.tensor(draw(st.lists(st.integers(0, 3), min_size=len(images), max_size=len(images))))
    own = model(images).argmax(1)
    return model, images, labels if draw(st.integers(0, 4)) == 0 else own


def search(attack, model, images, labels, indices, seed=0):
    with attack_mode(model):
        return attack(Target(model), images, labels, Draws(indices, seed, "law"))


@st.composite
def chosen_attacks(draw):
    # those that keep the best of many tries come more often: few draws reach the edge of their ball
    name = draw(st.sampled_from([*sorted(ATTACKS), *3 * ["fab", "rays", "square"]]))
    attack = ATTACKS[name]
    norm = draw(st.sampled_from(attack.norms))
    eps = draw(st.sampled_from([1 / 255, 1.0]) | st.floats(0.01, 0.4))
    eps = eps if norm == "linf" else 8 * eps
    return attack.replace(norm=norm, eps=eps)


def test_evaluation_attacks_stay_in_the_ball_and_in_the_box(record_property):
    @prove(
        record_property, 350, scene=scenes([1.0, 1.0, 1.0, 0.0, 1e-20, 1e4, 1e18]), attack=chosen_attacks(), seed=SEEDS
    )
    def law(scene, attack, seed):
        model, images, labels = scene
        before = images.clone()
        found = search(attack, model, images, labels, range(len(images)), seed)
        assert_inside(found.images, images, attack.norm, attack.eps)
        assert torch.equal(images, before)


def test_image_gets_the_same_attack_in_any_batch(record_property):
    @prove(record_property, 100, scene=scenes([1.0]), attack=chosen_attacks(), seed=SEEDS, cut=st.integers(1, 3))
    def law(scene, attack, seed, cut):
        model, images, labels = scene
        model, images = model.double(), images.double()  # so that rounding cannot decide differently in another batch
        whole = search(attack, model, images, labels, range(len(images)), seed).images
        pieces = [
            search(attack, model, images[part], labels[part], list(part), seed).images
            for part in (range(len(images))[:cut], range(len(images))[cut:])
            if len(part)
        ]
        torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-9, rtol=0)
