import copy

import pytest
import torch
from conftest import tiny_data, tiny_net
from transformers import EarlyStoppingCallback

from bmtard_hooks import PGDSettings, pgd
from bmtard_hooks.attacks import cross_entropy
from bmtard_hooks.evaluation.pgd_accuracy import accuracy_table, pgd_accuracy
from bmtard_hooks.randomness import uniform_by_image


def test_metrics_are_those_of_a_plain_loop(make_trainer):
    data = tiny_data(30, seed=7)
    trainer = make_trainer(tiny_net(0), eval_dataset=data, eps=0.1, eval_attack_step_size=0.03, eval_attack_steps=5)
    found = trainer.evaluate()
    model, images = tiny_net(0).eval(), data.images.float() / 255
    noise = uniform_by_image(range(30), images.shape[1:], 42, "eval")
    settings = PGDSettings(0.1, 0.03, 5, "linf", "uniform", clip_start=True)
    attacked = pgd(model, images, cross_entropy(data.labels), settings, noise=noise)
    with torch.no_grad():
        clean = model(images).argmax(1) == data.labels
        robust = clean & (model(attacked).argmax(1) == data.labels)
    assert found["eval_clean_accuracy"] == pytest.approx(clean.float().mean().item())
    assert found["eval_robust_accuracy"] == pytest.approx(robust.float().mean().item())
    assert found["eval_w_robust"] == pytest.approx((clean.float().mean() + robust.float().mean()).item() / 2)
    assert found["eval_loss"] == pytest.approx(torch.nn.functional.cross_entropy(model(images), data.labels).item())
    assert clean.sum() > 0 and robust.sum() < clean.sum()
    same = pgd_accuracy(tiny_net(0), data, settings, batch_size=11)
    assert same == {key: pytest.approx(found[f"eval_{key}"]) for key in same}


def test_result_does_not_depend_on_batch_size_and_repeats(make_trainer):
    data = tiny_data(30, seed=7)
    results = []
    for batch in (30, 7, 7):
        metrics = make_trainer(eval_dataset=data, eps=0.05, per_device_eval_batch_size=batch).evaluate()
        results.append([metrics[f"eval_{key}"] for key in ("clean_accuracy", "robust_accuracy", "w_robust")])
    assert results[0] == results[1] == results[2]


def test_drop_last_of_the_training_loader_spares_the_evaluation(make_trainer):
    data = tiny_data(10, seed=7)
    trainer = make_trainer(eval_dataset=data, dataloader_drop_last=True, per_device_eval_batch_size=4)
    assert trainer.predict(data).predictions[0].shape == (10, 4)
    assert trainer.evaluate()["eval_clean_accuracy"] * 10 == pytest.approx(
        sum((tiny_net(0)(data.images.float() / 255).argmax(1) == data.labels).tolist())
    )
    assert trainer.args.dataloader_drop_last


def test_evaluation_leaves_the_training_bit_identical(make_trainer):
    results = []
    for strategy in ("no", "steps"):
        student = tiny_net(0, batch_norm=True, dropout=0.3)
        make_trainer(student, eval_strategy=strategy, eval_steps=1, augment="crop_flip", crop_padding=1).train()
        results.append(copy.deepcopy(student.state_dict()))
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_verdict_is_float32_under_bf16_training(make_trainer):
    data = tiny_data(10, seed=7)
    trainer = make_trainer(tiny_net(0), bf16=True)
    logits = trainer.predict(data).predictions[0]
    with torch.no_grad():
        expected = tiny_net(0).eval()(data.images.float() / 255)
    assert torch.equal(torch.from_numpy(logits), expected)


def test_best_checkpoint_by_w_robust_is_kept_and_loaded(make_trainer):
    trainer = make_trainer(
        num_train_epochs=3,
        eval_strategy="epoch",
        save_strategy="best",
        metric_for_best_model="w_robust",
        load_best_model_at_end=True,
        callbacks=[EarlyStoppingCallback(3)],
    )
    trainer.train()
    measured = [entry["eval_w_robust"] for entry in trainer.state.log_history if "eval_w_robust" in entry]
    assert trainer.state.best_metric == max(measured)
    assert trainer.evaluate()["eval_w_robust"] == max(measured)


def test_users_metrics_see_clean_logits_and_are_added(make_trainer):
    def metrics(prediction):
        return {"top1": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    found = make_trainer(compute_metrics=metrics).evaluate()
    assert found["eval_top1"] == found["eval_clean_accuracy"] and "eval_w_robust" in found


def test_attack_can_be_left_out(make_trainer):
    found = make_trainer(eval_attack=False).evaluate()
    assert "eval_clean_accuracy" in found and "eval_w_robust" not in found


def test_several_evaluation_sets_are_reported_by_name(make_trainer):
    found = make_trainer(eval_dataset={"a": tiny_data(6, seed=1), "b": tiny_data(6, seed=2)}).evaluate()
    assert {"eval_a_w_robust", "eval_b_w_robust"} <= found.keys()


def test_table_has_a_row_per_model():
    row = {"clean_accuracy": 0.8820, "robust_accuracy": 0.5168, "w_robust": 0.6994}
    table = accuracy_table({"student": row}, "PGD-20").splitlines()
    assert table[0].split("|")[1:-1] == [" model   ", " clean  ", " PGD-20 ", " W-Robust "]
    assert [cell.strip() for cell in table[2].split("|")[1:-1]] == ["student", "88.20", "51.68", "69.94"]
    assert len({len(line) for line in table}) == 1
