import copy

import pytest
import torch
from conftest import sharp_net, tiny_data, tiny_net
from transformers import TrainerCallback

from bmtard_hooks import BMTARDConfig, BMTARDTrainer, EntropyBalance, LossBalance, PGDCollator


def test_log_has_stable_keys(make_trainer):
    trainer = make_trainer()
    trainer.train()
    kinds = ("loss", "entropy", "knowledge_scale", "relative_loss", "temperature", "weight")
    expected = {f"{kind}_{name}" for kind in kinds for name in ("clean", "robust")}
    training_logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(training_logs) == 4
    for entry in training_logs:
        assert expected <= entry.keys()
        assert all(type(entry[key]) is float for key in expected)
        total = sum(entry[f"weight_{name}"] * entry[f"loss_{name}"] for name in ("clean", "robust"))
        assert entry["loss"] == pytest.approx(total, rel=1e-5)


def test_teachers_are_bit_identical_after_training(make_trainer):
    teachers = [sharp_net(seed, batch_norm=True).train() for seed in (1, 2)]
    before = [copy.deepcopy(teacher.state_dict()) for teacher in teachers]
    make_trainer(clean_teacher=teachers[0], robust_teacher=teachers[1]).train()
    for teacher, saved in zip(teachers, before, strict=True):
        assert not any(module.training for module in teacher.modules())
        assert all(torch.equal(value, saved[name]) for name, value in teacher.state_dict().items())


def test_users_callback_replaces_the_methods_own(make_trainer):
    mine = LossBalance(rate=0.5)
    trainer = make_trainer(callbacks=[mine])
    found = [c for c in trainer.callback_handler.callbacks if isinstance(c, (LossBalance, EntropyBalance))]
    assert [type(callback) for callback in found] == [LossBalance, EntropyBalance]
    assert found[0] is mine


def test_removing_the_callbacks_leaves_the_baseline(make_trainer):
    trainer = make_trainer()
    trainer.remove_callback(LossBalance)
    trainer.remove_callback(EntropyBalance)
    trainer.train()
    state = trainer.distillation.state_dict()
    assert state["weights"] == {"robust": 0.5, "clean": 0.5}
    assert state["temperatures"] == {"robust": 1.0, "clean": 1.0}


def test_event_reaches_callbacks_of_any_class_and_spares_the_others(make_trainer):
    class Duck(TrainerCallback):
        calls = 0

        def on_losses(self, *args, **kwargs):
            Duck.calls += 1

    trainer = make_trainer(callbacks=[Duck()])  # Trainer's own callbacks have no such event
    trainer.train()
    assert Duck.calls == 4


@pytest.mark.parametrize("method", ["baseline", "mtard", "bmtard", "natural", "sat", "trades"])
def test_every_method_trains_any_student(make_trainer, method):
    student = tiny_net(0, batch_norm=True)
    before = copy.deepcopy(student.state_dict())
    trainer = make_trainer(student, method=method)
    output = trainer.train()
    assert output.global_step == 4 and 0 < output.training_loss < 20
    assert not torch.equal(before["head.weight"], student.state_dict()["head.weight"])


def test_optimizer_has_momentum_no_clipping_and_decays_everything(make_trainer):
    trainer = make_trainer(tiny_net(0, batch_norm=True))
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.SGD
    decayed = [group for group in optimizer.param_groups if group["params"]]
    assert len(decayed) == 1 and decayed[0]["weight_decay"] == 2e-4 and decayed[0]["momentum"] == 0.9
    assert len(decayed[0]["params"]) == len(list(trainer.model.parameters()))
    assert trainer.args.max_grad_norm == 0


def test_optimizer_and_schedule_stay_replaceable(make_trainer, make_config):
    student = tiny_net(0)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=0.5, total_iters=2)
    trainer = BMTARDTrainer(
        student, make_config(method="natural"), train_dataset=tiny_data(), optimizers=(optimizer, schedule)
    )
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == [5e-4, 5e-4, 1e-3, 1e-3]
    adam = make_trainer(optim="adamw_torch", learning_rate=1e-3, lr_scheduler_type="linear")
    adam.train()
    assert type(adam.optimizer.optimizer) is torch.optim.AdamW
    assert adam.state.log_history[-2]["learning_rate"] == pytest.approx(2.5e-4)


def test_learning_rate_falls_at_the_papers_share_of_any_run(make_trainer):
    trainer = make_trainer(data=tiny_data(4 * 60), method="baseline", steps=0)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    falls = [step for step in range(1, 60) if rates[step] != rates[step - 1]]
    assert falls == [43, 52, 57]  # 215, 260 and 285 of 300
    assert rates[-1] == pytest.approx(1e-4)


def test_attack_uses_the_weights_of_the_step_and_torchattacks_objects_work(make_trainer):
    import torchattacks

    seen = []

    class Spy(PGDCollator):
        def craft(self, model, batch, **kwargs):
            seen.append(next(model.parameters()).detach().clone())
            return super().craft(model, batch, **kwargs)

    student = tiny_net(0)
    history = [next(student.parameters()).detach().clone()]

    class After(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            history.append(next(model.parameters()).detach().clone())

    collator = Spy(attack=torchattacks.PGD(student, steps=2), augment="none")
    make_trainer(student, data_collator=collator, callbacks=[After()], dataloader_num_workers=1).train()
    assert len(seen) == 4
    assert all(torch.equal(used, now) for used, now in zip(seen, history, strict=False))
    assert not torch.equal(seen[0], seen[-1])


def test_bf16_and_compile_settings_train(make_trainer):
    trainer = make_trainer(tiny_net(0, batch_norm=True), bf16=True)
    trainer.train()
    assert trainer.accelerator.mixed_precision == "bf16"
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    compiled = make_trainer(tiny_net(0), torch_compile=True, torch_compile_backend="eager")
    compiled.train()
    plain = make_trainer(tiny_net(0))
    plain.train()
    for left, right in zip(compiled.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


class Moves(TrainerCallback):
    """Counts how often BatchNorm's statistics moved."""

    def __init__(self):
        self.steps = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.steps.append(model.norm.num_batches_tracked.item())


@pytest.mark.parametrize("train_mode, per_step", [(False, 2), (True, 2 + 3)])
def test_attack_in_training_mode_moves_statistics_also_after_an_evaluation(make_trainer, train_mode, per_step):
    moves = Moves()
    make_trainer(
        tiny_net(0, batch_norm=True),
        callbacks=[moves],
        steps=3,
        attack_train_mode=train_mode,
        eval_strategy="steps",
        eval_steps=1,
    ).train()
    assert moves.steps == [per_step * step for step in range(1, 5)]


def test_training_again_starts_the_balance_anew(make_trainer):
    trainer = make_trainer(weight_rate=0.5)
    trainer.train()
    first = trainer.distillation.state_dict()
    trainer.train()
    assert trainer.distillation.initial_losses["clean"].item() < first["initial_losses"]["clean"]


def test_method_without_an_attack_does_not_pay_for_one(make_trainer, monkeypatch):
    attacks = []
    monkeypatch.setattr("bmtard_hooks.collator.pgd", lambda *args, **kwargs: attacks.append(args))
    make_trainer(method="natural", data_collator=PGDCollator(augment="none"), eval_attack=False).train()
    assert not attacks


def test_progress_bar_shows_losses_and_balance(make_trainer):
    from bmtard_hooks.callbacks.progress import BalanceProgress

    shown = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            bar = next(c for c in trainer.callback_handler.callbacks if isinstance(c, BalanceProgress)).training_bar
            shown.append(bar.postfix)

    trainer = make_trainer(disable_tqdm=False, callbacks=[Watch()])
    trainer.train()
    assert all(word in shown[-1] for word in ("loss_clean", "loss_robust", "temperature_clean", "weight_robust"))


def test_subclass_of_a_balance_replaces_it(make_trainer):
    class Mine(LossBalance):
        pass

    trainer = make_trainer(callbacks=[Mine()])
    kinds = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
    assert "Mine" in kinds and "EntropyBalance" in kinds and "LossBalance" not in kinds


def test_loss_computed_by_hand_moves_nothing(make_trainer):
    trainer = make_trainer(method="natural")
    balanced = make_trainer()
    batch = balanced.crafter.craft(balanced.model, balanced.data_collator([tiny_data()[0], tiny_data()[1]]))
    assert balanced.compute_loss(balanced.model, batch).requires_grad
    assert not balanced.distillation.initial_losses and trainer.distillation.state_dict()["weights"] == {"clean": 1.0}


def test_student_by_name_and_order_of_images_depend_on_the_seed_alone(make_config):
    def first_weights(seed):
        torch.manual_seed(123 + seed)  # whatever happened before
        config = make_config(method="natural", seed=seed)
        assert config.data_seed == seed
        return next(BMTARDTrainer("resnet8_cifar", config, train_dataset=tiny_data()).model.parameters()).clone()

    assert torch.equal(first_weights(1), first_weights(1)) and not torch.equal(first_weights(1), first_weights(2))


@pytest.mark.parametrize("method, name", [("fair_ard", "weight"), ("absld", "clean_temperature")])
def test_logs_have_the_extremes_of_class_values(make_trainer, method, name):
    trainer = make_trainer(method=method, num_train_epochs=2, steps=1)
    trainer.train()
    last = [entry for entry in trainer.state.log_history if f"lowest_class_{name}" in entry][-1]
    values = trainer.distillation.per_class[name]
    assert last[f"lowest_class_{name}"] == values.min().item() < values.max().item() == last[f"highest_class_{name}"]


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_logged_gradient_norm_is_that_of_the_gradients_before_clipping(make_trainer, clip):
    class Gradients(TrainerCallback):
        norms: list = []

        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            self.norms.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item())

    seen = Gradients()
    seen.norms = []
    trainer = make_trainer(callbacks=[seen], max_grad_norm=clip)
    trainer.train()
    logged = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert len(logged) == len(seen.norms) == 4
    if clip:
        assert max(logged) > clip and seen.norms == pytest.approx([min(norm, clip) for norm in logged], rel=1e-3)
    else:
        assert logged == pytest.approx(seen.norms, rel=1e-5)


def test_teachers_without_names_are_refused(tmp_path):
    config = BMTARDConfig(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(TypeError, match=r'teachers is a list, .* pass a dictionary, teachers=\{"clean": …'):
        BMTARDTrainer(tiny_net(0), config, train_dataset=tiny_data(), teachers=[sharp_net(1), sharp_net(2)])
