import math

import pytest
import torch
from conftest import TinyNet, sharp_net, tiny_data, tiny_net
from torch import nn

from bmtard_hooks import (
    DistillationState,
    EntropyBalance,
    ImageTensors,
    PGDSettings,
    PixelClassifier,
    attack_mode,
    pgd,
)
from bmtard_hooks.attacks.losses import cross_entropy
from bmtard_hooks.attacks.pgd import draw_noise_by_image
from bmtard_hooks.evaluation.preview import find_meeting, preview_teachers
from bmtard_hooks.functional import entropy, soften

ATTACK = PGDSettings(steps=2)


class Answers(nn.Module):
    """Gives the same logits to every image."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, pixels):
        return self.logits + 0 * pixels.mean(dim=(1, 2, 3)).unsqueeze(1)


def teachers():
    return sharp_net(1, scale=16), sharp_net(2, scale=6)


def preview(clean=None, robust=None, data=None, **options):
    usual = teachers()
    return preview_teachers(
        clean or usual[0], robust or usual[1], data or tiny_data(24), **{"attack": ATTACK, **options}
    )


def test_knowledge_scales_of_known_logits():
    teacher = Answers(2.0, 0.5, -0.3)
    found = preview(teacher, teacher, tiny_data(4, num_classes=3), temperatures=(1.0, 2.0))
    assert found.entropies == pytest.approx((0.707350, 0.983227), abs=5e-5)
    scales = math.log(3) - 0.707350, math.log(3) - 0.983227
    assert found.knowledge_scales(found.entropies) == pytest.approx(scales, abs=5e-5)
    assert found.meeting.met and found.meeting.temperatures == pytest.approx((1.5, 1.5), abs=1e-6)
    assert found.meeting.steps == 500


def test_each_teacher_is_measured_on_what_it_sees_in_training():
    data, (clean, robust) = tiny_data(24), teachers()
    found = preview(clean, robust, seed=3, batch_size=7)
    pixels = data.images.float() / 255
    noise = draw_noise_by_image(range(24), (3, 8, 8), ATTACK, 3, "preview")
    with attack_mode(robust):
        adversarial = pgd(robust, pixels, cross_entropy(data.labels), ATTACK, noise=noise)
    with torch.no_grad():
        logits = clean(pixels), robust(adversarial)
    assert found.entropies == pytest.approx([float(entropy(soften(z, 1.0)).mean()) for z in logits], abs=1e-4)
    assert found.accuracies == pytest.approx([float((z.argmax(1) == data.labels).float().mean()) for z in logits])
    assert (found.images, found.num_classes) == (24, 4)


def test_entropies_are_equal_where_the_temperatures_meet():
    found = preview()
    clean, robust = found.meeting.entropies
    assert found.meeting.met and abs(clean - robust) < 1e-3 and abs(found.entropies[0] - found.entropies[1]) > 0.1
    assert found.meeting.temperatures[0] > 1 and found.meeting.temperatures[1] == 1
    assert found.meeting.steps == math.ceil((found.meeting.temperatures[0] - 1) / 0.001)


@pytest.mark.parametrize(
    ("start", "high"), [((1.0, 1.0), 10.0), ((2.0, 8.0), 10.0), ((9.0, 1.5), 10.0), ((1.0, 1.2), 1.5)]
)
def test_the_way_is_that_of_the_callback(start, high):
    clean, robust = Answers(6.0, 1.0, 0.0, -1.0), Answers(2.0, 1.0, 0.0, 0.0)
    found = preview(clean, robust, temperatures=start, max_temperature=high, rate=0.01)
    balance = EntropyBalance(rate=0.01, max_temperature=high, follow_lr=False)
    state = DistillationState.create({"clean": start[0], "robust": start[1]}, {})
    logits = {"clean": clean.logits.detach().double(), "robust": robust.logits.detach().double()}
    for _ in range(found.meeting.steps):
        entropies = {name: entropy(soften(logits[name], state.temperatures[name]), 1e-5) for name in logits}
        balance.on_losses(None, None, None, losses={}, entropies=entropies, distillation=state)
        state.advance()
    arrived = [float(state.temperatures[name]) for name in ("clean", "robust")]
    assert found.meeting.temperatures == pytest.approx(arrived, abs=0.0101)
    assert found.meeting.met == (high == 10)


def test_teachers_that_cannot_meet_stop_at_the_bounds():
    found = preview(temperatures=(1.0, 1.0), max_temperature=1.05)
    assert not found.meeting.met
    assert found.meeting.temperatures == (1.05, 1.0) and found.meeting.steps == 50
    assert "do not meet within [1, 1.05]" in found.to_markdown()


def test_no_room_and_no_gap():
    fixed = preview(max_temperature=1.0)
    assert (fixed.meeting.met, fixed.meeting.steps, len(fixed.curve)) == (False, 0, 1)
    equal = find_meeting(lambda clean, robust: (clean, robust), (3.0, 3.0), (1.0, 10.0), 0.001)
    assert (equal.met, equal.steps, equal.temperatures) == (True, 0, (3.0, 3.0))


def test_curve_rises_from_bound_to_bound():
    found = preview()
    temperatures, clean, robust = zip(*found.curve, strict=True)
    assert (temperatures[0], temperatures[-1]) == (1.0, 10.0)
    for values in (temperatures, clean, robust):
        assert list(values) == sorted(values)
    assert (clean[0], robust[0]) == found.entropies
    assert clean[-1] < math.log(4) + 1e-4


def test_batch_size_and_a_limit_do_not_change_an_image():
    whole = preview()
    assert preview(batch_size=5).entropies == pytest.approx(whole.entropies, abs=1e-6)
    some = preview(images=10)
    assert some.images == 10
    assert preview(data=tiny_data(24).subset(range(10))).entropies == pytest.approx(some.entropies)


def test_another_model_can_stand_for_the_student():
    done = []
    found = preview(attacked=tiny_net(5), progress=done.append, batch_size=10)
    own = preview()  # in one batch, whose size may choose other kernels
    assert found.entropies[0] == pytest.approx(own.entropies[0], rel=1e-5)
    assert found.entropies[1] != pytest.approx(own.entropies[1], rel=1e-3)
    assert "an attack on the model that was given, in place of the student" in found.to_markdown()
    assert done == [10, 20, 24]


def test_teachers_are_left_as_they_were():
    clean, robust = PixelClassifier(tiny_net(1, batch_norm=True)), tiny_net(2, batch_norm=True)
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in (clean, robust)]
    preview(clean, robust, attack=PGDSettings(steps=1, train_mode=True))
    for model, state in zip((clean, robust), before, strict=True):
        assert model.training and all(parameter.requires_grad for parameter in model.parameters())
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_markdown_is_the_papers_table_with_the_meeting_below():
    found = preview()
    text = found.to_markdown()
    clean = next(line for line in text.splitlines() if line.startswith("| clean |"))
    assert f"{found.knowledge_scales(found.entropies)[0]:.4f}" in clean and "1.000" in clean
    assert f"temperatures {found.meeting.temperatures[0]:.3f} (clean) and 1.000 (robust)" in text
    assert f"{found.meeting.steps:,} optimizer steps of 0.001" in text
    assert "the robust teacher itself, in place of the student" in text and "Training attacks the student" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperatures": (0.5, 1.0)}, r"clean teacher's temperature 0\.5 is outside \[1\.0, 10\.0\]"),
        ({"temperatures": (1.0, 11.0)}, "robust teacher's temperature"),
        ({"min_temperature": 5.0, "max_temperature": 2.0}, "crossed"),
        ({"rate": 0.0}, r"rate=0\.0"),
        ({"images": 0}, "no images"),
        ({"robust": TinyNet(num_classes=3)}, "clean teacher 4, robust teacher 3, attacked model 3; they must agree"),
        ({"robust": TinyNet(channels=1)}, r"the robust teacher cannot take images of shape \(3, 8, 8\)"),
        ({"data": tiny_data(24, num_classes=7)}, "a label is 6, but the models have 4 classes"),
    ],
)
def test_what_cannot_be_previewed_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        preview(**options)


def test_a_teacher_that_is_not_finite_is_refused():
    broken = tiny_net(1)
    with torch.no_grad():
        broken.head.bias[0] = math.nan
    with pytest.raises(ValueError, match="clean teacher gives logits that are not finite"):
        preview(broken)


@pytest.mark.parametrize(("right", "asked"), [(0, True), (1, True), (2, False)])
def test_a_robust_teacher_at_chance_is_asked_about(right, asked):
    data = tiny_data(8, num_classes=4)
    always_first = Answers(3.0, 0.0, 0.0, 0.0)
    labels = torch.tensor([0] * 2 * right + [1] * (8 - 2 * right))  # of eight images, so one in four is chance
    shown = preview(always_first, always_first, ImageTensors(data.images, labels)).to_markdown()
    question = f"The robust teacher is right on {25 * right:.1f} % of attacked images: are the two exchanged?"
    assert (question in shown) is asked and ("exchanged" in shown) is asked
