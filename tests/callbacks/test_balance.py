from functools import partial

import pytest
import torch
from transformers import TrainerCallback

from bmtard_hooks.callbacks import EntropyBalance, LossBalance
from bmtard_hooks.callbacks.base import schedule_factor
from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.functional import entropy, soften
from bmtard_hooks.methods import method_class
from bmtard_hooks.state import DistillationState

ABLATIONS = {  # scenario of the vectors to (method, options)
    "A_default": ("bmtard", {}),
    "B_scale10": ("bmtard", {"loss_scale": 10.0 / 3}),
    "C_tau0_2": ("bmtard", {"clean_temperature": 2.0, "robust_temperature": 2.0}),
    "D_milestone_after_2": ("bmtard", {}),
    "E_beta4": ("bmtard", {"loss_balance_power": 4.0}),
    "F_mtard_no_ebb": ("mtard", {}),
    "G_baseline_no_ebb_no_nlb": ("baseline", {}),
    "H_baseline_plus_ebb": ("baseline", {"entropy_balance": True}),
    "I_tau0_10_upper_clamp": ("bmtard", {"clean_temperature": 10.0, "robust_temperature": 10.0}),
}


VIEWS = {"robust": "adv", "clean": "nat"}
BATCH = {"adv_pixel_values": "adv", "pixel_values": "nat"}


class Optimizer:
    """Stands in for the optimizer, whose learning rate the balance follows."""

    def __init__(self):
        self.param_groups = [{"lr": 0.1, "initial_lr": 0.1}]


def tensors(step, dtype):
    return {key: torch.tensor(value, dtype=dtype, requires_grad=key[0] == "s") for key, value in step.items()}


def run(scenario, vectors, tmp_path, dtype=torch.float64):
    method_name, options = ABLATIONS[scenario]
    # The vectors average over batch and classes; 1/3 of the sum over three classes is the same.
    config = BMTARDConfig(output_dir=str(tmp_path), method=method_name, **{"loss_scale": 1.0 / 3, **options})
    method = method_class(method_name)(config)
    state = DistillationState.create(method.temperatures(), method.weights)
    callbacks, optimizer = method.callbacks(), Optimizer()
    for number, step in enumerate(vectors["bmtard"]["steps"], 1):
        logits = tensors(step, dtype)
        found = {f"tau_used_{VIEWS[name]}": value.item() for name, value in state.temperatures.items()}
        student, teacher = (partial(lambda who, view, all: all[f"{who}_{view}"], who, all=logits) for who in "st")
        output = method.loss_parts(student, {"robust": teacher, "clean": teacher}, BATCH, state)
        losses = {part: value.detach().double() for part, value in output.parts.items()}
        entropies = {teacher: value.detach().double() for teacher, value in output.entropies.items()}
        for callback in callbacks:
            callback.on_losses(
                config, None, None, losses=losses, entropies=entropies, distillation=state, optimizer=optimizer
            )
        total = sum(state.weights[part] * output.parts[part] for part in losses)
        total.backward()
        state.advance()
        if scenario == "D_milestone_after_2" and number == 2:
            optimizer.param_groups[0]["lr"] *= 0.1
        for name, short in VIEWS.items():
            found[f"loss_{short}"] = losses[name].item()
            found[f"code_value_{short}"] = -entropies[name].item() / 3
            found[f"tau_next_{short}"] = state.temperatures[name].item()
            found[f"w_{short}"] = state.weights[name].item()
            found[f"dtotal_ds_{short}"] = logits[f"s_{short}"].grad.flatten().tolist()
        yield {**found, "total": total.item()}


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float64, {"abs": 1e-6}), (torch.float32, {"rel": 1e-5, "abs": 1e-6})]
)
@pytest.mark.parametrize("scenario", ABLATIONS)
def test_three_steps_match_the_vectors(scenario, vectors, tmp_path, dtype, tolerance):
    rows = vectors["bmtard"]["scenarios"][scenario]["expected"]
    assert len(rows) == 3
    for row, found in zip(rows, run(scenario, vectors, tmp_path, dtype), strict=True):
        for key, value in found.items():
            expected = torch.tensor(row[key]).flatten().tolist() if key.startswith("dtotal") else row[key]
            assert value == pytest.approx(expected, **tolerance), key


@pytest.mark.parametrize("rule, key", [("ratio", "code"), ("difference", "paper")])
def test_rules_differ_only_for_an_over_confident_teacher(rule, key, vectors):
    case = vectors["bmtard"]["degenerate_overconfident_teacher"]
    state = DistillationState.create({"robust": case["tau0"], "clean": case["tau0"]}, {})
    logits = {"robust": case["step"]["t_adv"], "clean": case["step"]["t_nat"]}
    entropies = {
        name: entropy(soften(torch.tensor(value, dtype=torch.float64), case["tau0"]), log_eps=1e-5).mean()
        for name, value in logits.items()
    }
    EntropyBalance(rule=rule).on_losses(None, None, None, losses={}, entropies=entropies, distillation=state)
    state.advance()
    expected = case["expected"][key]
    assert state.temperatures["robust"].item() == pytest.approx(expected["tau_next_adv"], abs=1e-6)
    assert state.temperatures["clean"].item() == pytest.approx(expected["tau_next_nat"], abs=1e-6)


def balanced(callback, losses=None, entropies=None, **state):
    state = DistillationState.create(state.get("temperatures", {}), state.get("weights", {}))
    as_tensors = [
        {name: torch.tensor(value, dtype=torch.float64) for name, value in (values or {}).items()}
        for values in (losses, entropies)
    ]
    callback.on_losses(None, None, None, losses=as_tensors[0], entropies=as_tensors[1], distillation=state)
    return state


def test_temperatures_move_from_the_next_step_on():
    state = balanced(EntropyBalance(rate=0.5), entropies={"a": 0.1, "b": 0.9}, temperatures={"a": 2.0, "b": 2.0})
    assert {name: value.item() for name, value in state.temperatures.items()} == {"a": 2.0, "b": 2.0}
    state.advance()
    assert {name: value.item() for name, value in state.temperatures.items()} == {"a": 2.5, "b": 1.5}


@pytest.mark.parametrize("start, expected", [(1.0, 1.0), (10.0, 10.0)])
def test_temperature_step_is_clipped_to_its_range(start, expected):
    sure = {"a": 0.9, "b": 0.1} if start == 1.0 else {"a": 0.1, "b": 0.9}
    state = balanced(EntropyBalance(rate=0.5), entropies=sure, temperatures={"a": start, "b": 5.0})
    state.advance()
    assert state.temperatures["a"].item() == expected


def test_equal_entropies_leave_temperatures_alone():
    state = balanced(EntropyBalance(), entropies={"a": 0.3, "b": 0.3}, temperatures={"a": 2.0, "b": 3.0})
    state.advance()
    assert [value.item() for value in state.temperatures.values()] == [2.0, 3.0]


def test_three_teachers_move_towards_their_mean_entropy():
    state = balanced(
        EntropyBalance(rate=0.1),
        entropies={"a": 0.1, "b": 0.3, "c": 0.8},
        temperatures={"a": 2.0, "b": 2.0, "c": 2.0},
    )
    state.advance()
    assert [round(value.item(), 6) for value in state.temperatures.values()] == [2.1, 2.1, 1.9]


def test_ratio_rule_refuses_three_teachers():
    with pytest.raises(ValueError, match="compares two teachers, got 3"):
        balanced(
            EntropyBalance(rule="ratio"), entropies={"a": 0.1, "b": 0.3, "c": 0.8}, temperatures=dict(a=1, b=1, c=1)
        )


def test_part_that_learns_slowest_gains_weight():
    callback = LossBalance(rate=0.5)
    state = DistillationState.create({}, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})
    for losses in ({"a": 1.0, "b": 2.0, "c": 4.0}, {"a": 1.0, "b": 1.0, "c": 0.4}):
        as_tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in losses.items()}
        callback.on_losses(None, None, None, losses=as_tensors, entropies={}, distillation=state)
    weights = {name: value.item() for name, value in state.weights.items()}
    target = {"a": 1 / 1.6, "b": 0.5 / 1.6, "c": 0.1 / 1.6}
    assert weights == pytest.approx({name: 0.5 / 3 + 0.5 * value for name, value in target.items()})
    assert sum(weights.values()) == pytest.approx(1)


def test_unbalanced_parts_keep_their_weight():
    state = DistillationState.create({}, {"a": 0.5, "b": 0.5, "extra": 2.0})
    state.initial_losses.update({"a": torch.tensor(1.0), "b": torch.tensor(1.0)})
    losses = {name: torch.tensor(value, dtype=torch.float64) for name, value in dict(a=1.0, b=0.0, extra=9.0).items()}
    LossBalance(rate=1.0, parts=["a", "b"]).on_losses(
        None, None, None, losses=losses, entropies={}, distillation=state
    )
    assert [round(state.weights[name].item(), 6) for name in ("a", "b", "extra")] == [1.0, 0.0, 2.0]


def test_first_loss_of_zero_is_refused_with_the_likely_cause():
    with pytest.raises(ValueError, match="robust loss of the first step is 0.*student that equals its teacher"):
        balanced(LossBalance(), losses={"robust": 0.0, "clean": 1.0}, weights={"robust": 0.5, "clean": 0.5})


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: EntropyBalance(rate=0), "temperature_rate=0 must be positive"),
        (lambda: EntropyBalance(min_temperature=5, max_temperature=2), r"bounds \[5, 2\] are crossed"),
        (lambda: EntropyBalance(rule="quotient"), "entropy_rule='quotient' is unknown"),
        (lambda: LossBalance(rate=1.5), r"weight_rate=1.5 is outside \(0, 1\]"),
        (lambda: LossBalance(power=0), "loss_balance_power=0 must be positive"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Factors(TrainerCallback):
    """Reads after every step how far the learning rate has fallen."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        self.seen.append(schedule_factor(optimizer))


def test_balance_follows_a_learning_rate_that_falls_on_a_plateau_after_a_resume_too(make_trainer, tmp_path):
    def run(checkpoint=None):
        factors = Factors()
        trainer = make_trainer(
            lr_scheduler_type="reduce_lr_on_plateau", metric_for_best_model="w_robust", eval_strategy="epoch",
            lr_scheduler_kwargs={"patience": 0, "factor": 0.1, "threshold": 10.0}, save_strategy="epoch",
            num_train_epochs=4, per_device_train_batch_size=16, callbacks=[factors], overwrite_output_dir=True,
        )  # fmt: skip
        trainer.train(checkpoint)
        return factors.seen

    straight = run()
    assert straight == pytest.approx([1, 0.1, 0.01, 0.001])  # no evaluation is ever good enough
    assert run(str(tmp_path / "run" / "checkpoint-3")) == pytest.approx(straight[3:])


def test_balance_never_moves_faster_than_its_rate_when_the_learning_rate_rises():
    """One cycle begins at a 25th of its highest rate, and a greedy schedule goes beyond its first one."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
    factors = []
    for _ in range(20):
        factors.append(schedule_factor(optimizer))
        optimizer.step()
        schedule.step()
    assert factors[0] == pytest.approx(1 / 25) and max(factors) == pytest.approx(1.0) and factors[-1] < 0.01
    optimizer.param_groups[0].pop("max_lr")
    optimizer.param_groups[0].update(initial_lr=0.1, lr=0.8)
    assert schedule_factor(optimizer) == 1.0


def test_balance_follows_a_greedy_learning_rate(make_trainer):
    factors = Factors()
    trainer = make_trainer(
        lr_scheduler_type="greedy", metric_for_best_model="w_robust", eval_strategy="epoch", save_strategy="epoch",
        lr_scheduler_kwargs={"patience": 0, "factor": 0.5, "threshold": 10.0, "smooth": False},
        num_train_epochs=3, per_device_train_batch_size=16, callbacks=[factors],
    )  # fmt: skip
    trainer.train()
    assert trainer.optimizer.param_groups[0]["initial_lr"] == trainer.args.learning_rate
    assert max(factors.seen) <= 1.0
