"""AdaAD, AdaIAD, CIARD, SAAD and IGDM against numbers checked with their authors' code."""

import json
from pathlib import Path

import pytest
import torch
from vector_scene import Scene, assert_matches

from bmtard_hooks.attacks.pgd import PGDSettings, pgd
from bmtard_hooks.callbacks.loss_balance import LossBalance
from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.functional import renyi_entropy, soften
from bmtard_hooks.methods import make_method
from bmtard_hooks.methods.ciard import CIARD, teacher_learns, teacher_lr_factor
from bmtard_hooks.methods.igdm import Recalling, gradient_matching
from bmtard_hooks.schedule import epoch_schedule
from bmtard_hooks.state import DistillationState

FIXTURES = Path(__file__).parents[1] / "fixtures"
RIVALS = json.loads((FIXTURES / "rival_vectors.json").read_text())

MEANS = {"element mean": 1 / 3, "batch mean": 1.0}


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", [name for name in RIVALS["outer"] if name.startswith("adaad")])
def test_adaad(name, tmp_path):
    case = RIVALS["outer"][name]
    options = {"loss_scale": MEANS[case["config"]["reduction"]], "adaad_alpha": case["config"]["alpha"]}
    assert_matches(Scene(RIVALS["shared"], tmp_path, "adaad", **options), case["expected"])


@pytest.mark.parametrize("when, epoch", [("before", 59), ("after", 60)])
def test_adaiad(when, epoch, tmp_path):
    scene = Scene(RIVALS["shared"], tmp_path, "adaiad")
    scene.state.epoch, scene.state.epochs = epoch, 200
    assert_matches(scene, RIVALS["outer"][f"adaiad_{when}_begin"]["expected"])


@pytest.mark.parametrize("name", [name for name in RIVALS["outer"] if name.startswith("ciard")])
def test_ciard(name, tmp_path):
    case = RIVALS["outer"][name]
    config, expected = case["config"], case["expected"]
    scene = Scene(RIVALS["shared"], tmp_path, "ciard", labels=config["labels"], loss_scale=1 / 3)
    scene.state.weights.update(robust=tensor(config["w_adv"]), clean=tensor(config["w_nat"]))
    scene.state.temperatures.update(robust=tensor(config["tau_adv"]), clean=tensor(config["tau_nat"]))
    scene.state.epochs = 300  # the first sixth: the teacher does not learn yet
    assert_matches(scene, expected)
    if expected["push_scale"] is None:
        assert scene.output.parts["push"].item() == 0
    else:
        assert scene.output.parts["push"].item() == pytest.approx(expected["push"], abs=1e-6)
        assert scene.state.weights["push"].item() == pytest.approx(expected["push_scale"])


def test_ciards_schedule(tmp_path):
    method = make_method(BMTARDConfig(output_dir=str(tmp_path), method="ciard"))
    assert isinstance(method, CIARD)
    for row in RIVALS["ciard_schedule"]:
        epoch = row["epoch"] - 1
        state = DistillationState(epoch=epoch, epochs=300)
        assert 0.1 * method.lr_factor(epoch, 300) == pytest.approx(row["student_lr"], rel=1e-6, abs=1e-12)
        assert 1e-4 * teacher_lr_factor(epoch, 300) == pytest.approx(row["teacher_lr"], rel=1e-6, abs=1e-15)
        assert teacher_learns(state) == row["teacher_updated"]


@pytest.mark.parametrize("epochs, steps", [(2.5, 25), (1.2, 12), (4, 40)])
def test_ciards_learning_rate_never_rises_again_and_ends_at_zero(epochs, steps, tmp_path):
    method = make_method(BMTARDConfig(output_dir=str(tmp_path), method="ciard", use_cpu=True))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = epoch_schedule(optimizer, method.lr_factor, epochs, steps)
    rates = [schedule.lr_lambdas[0](step) for step in range(steps)]
    assert rates == sorted(rates, reverse=True) and rates[-1] == pytest.approx(0, abs=1e-12)


def test_ciards_balance_stops_in_the_code_and_slows_down_in_the_paper(tmp_path):
    class At:
        max_steps = 3000

        def __init__(self, step):
            self.global_step = step

    factors = {}
    for per_step in (True, False):
        config = BMTARDConfig(output_dir=str(tmp_path), method="ciard", ciard_rates_per_step=per_step)
        method = make_method(config)
        factors[per_step] = [method.rate_factor(At(step)) for step in (0, 2140, 2141, 2149, 2150, 2600, 2850)]
    assert factors[True][:4] == pytest.approx([1, 1, 0.1, 1e-9]) and max(factors[True][4:]) < 1e-9
    assert factors[False] == pytest.approx([1, 1, 1, 1, 0.1, 0.01, 0.001])


@pytest.mark.parametrize("name", ["saad_gamma1", "saad_c_beta1", "saad_gamma2", "saad_gamma05"])
def test_saad(name, tmp_path):
    case = RIVALS["outer"][name]
    options = {"saad_entropy_order": case["config"]["gamma"], "saad_clean_weight": case["config"]["beta"]}
    scene = Scene(RIVALS["shared"], tmp_path, "saad", igdm_weight=case["config"]["igdm_alpha"], **options)
    assert_matches(scene, case["expected"])


def test_saads_weights_are_taken_over_all_micro_batches_together(tmp_path):
    expected = RIVALS["outer"]["saad_weights_batch4"]["expected"]
    logits = {key: tensor(RIVALS["shared"]["logits"][key]) for key in ("tr_adv", "tr_nat")}
    method = make_method(BMTARDConfig(output_dir=str(tmp_path), method="saad"))
    batches = [{"adv_pixel_values": logits["tr_adv"]}, {"adv_pixel_values": logits["tr_nat"]}]
    prepared = method.prepare({"robust": lambda rows: rows}, batches, DistillationState())
    together = {
        key: torch.cat([batch[key] for batch in prepared]).tolist() for key in ("image_weights", "image_shares")
    }
    assert together["image_weights"] == pytest.approx(expected["w"], abs=1e-6)
    assert together["image_shares"] == pytest.approx(expected["w_norm"], abs=1e-6)
    assert renyi_entropy(soften(logits["tr_adv"])).tolist() == pytest.approx(expected["entropy"][:2], abs=1e-6)


def test_gradient_matching_on_logits():
    expected = RIVALS["outer"]["igdm_from_logits"]["expected"]
    given = {key: tensor(value) for key, value in RIVALS["shared"]["logits"].items()}
    ahead, behind = given["s_adv"].requires_grad_(), given["s_nat"].requires_grad_()
    loss = gradient_matching(ahead, behind, given["tr_adv"], given["tr_nat"]).mean()
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-6)
    torch.testing.assert_close(ahead.grad, tensor(expected["dloss_ds_adv"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(behind.grad, tensor(expected["dloss_ds_nat"]), atol=1e-6, rtol=0)


class Linear:
    """The linear student and teacher of the vectors; images are rows."""

    def __init__(self):
        config = RIVALS["inner"]["config"]
        self.weight, self.bias = tensor(config["W"]).requires_grad_(), tensor(config["b"]).requires_grad_()
        self.teacher_weight, self.teacher_bias = tensor(config["W_teacher"]), tensor(config["b_teacher"])
        self.images, self.labels = tensor(config["x"]), torch.tensor(config["labels"])
        self.noise = tensor(config["randn_draw"])
        self.eps, self.step = config["eps"], config["step"]

    def student(self, rows):
        return rows @ self.weight.T + self.bias

    def teacher(self, rows):
        return rows @ self.teacher_weight.T + self.teacher_bias


@pytest.mark.parametrize(
    "name, method", [("adaad_kl", "adaad"), ("saad_kl", "saad"), ("adaad_kl_swapped_eps_step", "adaad")]
)
def test_inner_attacks_look_through_the_teacher(name, method, tmp_path):
    net, expected = Linear(), RIVALS["inner"]["expected"][name]
    batch = {"pixel_values": net.images, "labels": net.labels}
    method = make_method(BMTARDConfig(output_dir=str(tmp_path), method=method))
    objective = method.attack_objective(net.student, {"robust": net.teacher}, batch, DistillationState())
    start = (net.images + 0.001 * net.noise).requires_grad_()
    (first,) = torch.autograd.grad(objective.loss(net.student(start), start).sum(), start)
    torch.testing.assert_close(first, tensor(expected["grad_first_step"]), atol=1e-6, rtol=0)
    eps, step = (net.step, net.eps) if "swapped" in name else (net.eps, net.step)
    settings = PGDSettings(eps=eps, step_size=step, steps=3)
    found = pgd(net.student, net.images, objective, settings, noise=net.noise)
    torch.testing.assert_close(found, tensor(expected["x_adv"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["alpha1_epoch50", "alpha10_epoch50", "alpha20_epoch200", "one_sided_beta1_gamma0"])
def test_igdm_on_adaad(name, tmp_path):
    net, case = Linear(), RIVALS["igdm_linear"][name]
    options = {"igdm_backward": 0.0} if "one_sided" in name else {}
    method = make_method(
        BMTARDConfig(
            output_dir=str(tmp_path), method="adaad", loss_scale=1.0, igdm_weight=case["config"]["alpha"], **options
        )
    )
    adversarial = tensor(RIVALS["inner"]["expected"]["adaad_kl"]["x_adv"])
    batch = {"pixel_values": net.images, "adv_pixel_values": adversarial, "labels": net.labels}
    state = DistillationState.create({}, method.weights)
    state.epoch, state.epochs = case["config"]["epoch"] - 1, case["config"]["total"]
    output = method.loss_parts(net.student, {"robust": net.teacher}, batch, state)
    expected = case["expected"]
    assert output.parts["igdm"].item() == pytest.approx(expected["igdm"], abs=1e-6)
    total = sum(state.weights[p] * output.coefficients.get(p, 1.0) * v for p, v in output.parts.items())
    assert total.item() == pytest.approx(expected["total"], abs=1e-6)
    total.backward()
    torch.testing.assert_close(net.weight.grad, tensor(expected["dtotal_dW"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(net.bias.grad, tensor(expected["dtotal_db"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", RIVALS["saad_linear"])
def test_saad_with_its_gradient_matching(name, tmp_path):
    net, case = Linear(), RIVALS["saad_linear"][name]
    config = case["config"]
    method = make_method(
        BMTARDConfig(
            output_dir=str(tmp_path),
            method="saad",
            igdm_weight=config["alpha"],
            saad_clean_weight=config["beta"],
            saad_entropy_order=config["gamma"],
        )
    )
    adversarial = tensor(RIVALS["inner"]["expected"]["saad_kl"]["x_adv"])
    batch = {"pixel_values": net.images, "adv_pixel_values": adversarial, "labels": net.labels}
    state = DistillationState.create({}, method.weights)
    state.epoch, state.epochs = config["epoch"] - 1, config["total"]
    teachers = {"robust": net.teacher}
    (prepared,) = method.prepare(teachers, [batch], state)
    output = method.loss_parts(net.student, teachers, prepared, state)
    total = sum(state.weights[p] * output.coefficients.get(p, 1.0) * v for p, v in output.parts.items())
    total.backward()
    assert total.item() == pytest.approx(case["expected"]["loss"], abs=1e-6)
    torch.testing.assert_close(net.weight.grad, tensor(case["expected"]["dloss_dW"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(net.bias.grad, tensor(case["expected"]["dloss_db"]), atol=1e-6, rtol=0)


def test_loss_balance_of_three_parts_sees_them_without_their_coefficients():
    case = RIVALS["nlb_three_parts"]
    balance = LossBalance(case["config"]["r_w"], case["config"]["beta"])
    state = DistillationState.create({}, dict.fromkeys(case["config"]["parts"], 1 / 3))
    for row in case["expected"]:
        losses = {name: tensor(value) for name, value in row["parts"].items()}
        balance.on_losses(None, None, None, losses=losses, entropies={}, distillation=state, class_sums={})
        assert {name: weight.item() for name, weight in state.weights.items()} == pytest.approx(row["w"], abs=1e-6)
        total = sum(state.weights[n] * case["config"]["coefficients"][n] * v for n, v in losses.items())
        assert total.item() == pytest.approx(row["total"], abs=1e-6)


def test_balanced_igdm_is_a_part_like_the_others(tmp_path):
    config = BMTARDConfig(output_dir=str(tmp_path), method="bmtard", igdm_weight=2.0, igdm_balanced=True)
    method = make_method(config)
    (balance,) = (c for c in method.callbacks() if isinstance(c, LossBalance))
    assert balance.parts == ["robust", "clean", "igdm"]
    assert method.weights == pytest.approx(dict.fromkeys(balance.parts, 1 / 3))
    outside = make_method(BMTARDConfig(output_dir=str(tmp_path), method="bmtard", igdm_weight=2.0))
    (balance,) = (c for c in outside.callbacks() if isinstance(c, LossBalance))
    assert balance.parts == ["robust", "clean"]
    assert outside.weights == pytest.approx({"robust": 0.5, "clean": 0.5, "igdm": 1.0})


def test_igdm_remembers_an_answer_for_the_very_images_alone():
    asked = Recalling(lambda pixels: pixels.sum())
    for value in range(10):  # images that nobody keeps, whose place in memory the next ones get
        assert asked.recall(torch.full((2,), float(value))).item() == 2 * value
    images = torch.ones(2)
    first = asked(images)
    assert asked.recall(images) is first
    images.mul_(3)
    assert asked.recall(images).item() == 6
