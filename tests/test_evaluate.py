import copy

import pytest
import torch
from conftest import tiny_data, tiny_net
from transformers import EarlyStoppingCallback

from bmtard_hooks import PGDSettings, pgd
from bmtard_hooks.attacks import cross_entropy
from bmtard_hooks.attacks.pgd import draw_noise_by_image
from bmtard_hooks.recipe import measure


def test_metrics_are_those_of_a_plain_loop(make_trainer):
    data = tiny_data(30, seed=7)
    trainer = make_trainer(tiny_net(0), eval_dataset=data, eps=0.1, eval_attack_step_size=0.03, eval_attack_steps=5)
    found = trainer.evaluate()
    model, images = tiny_net(0).eval(), data.images.float() / 255
    settings = PGDSettings(0.1, 0.03, 5, "linf", "uniform", clip_start=True)
    noise = draw_noise_by_image(range(30), images.shape[1:], settings, 42, "PGD-5", "start", 0)
    attacked = pgd(model, images, cross_entropy(data.labels), settings, noise=noise)
    with torch.no_grad():
        clean = model(images).argmax(1) == data.labels
        robust = clean & (model(attacked).argmax(1) == data.labels)
    assert found["eval_clean_accuracy"] == pytest.approx(clean.float().mean().item())
    assert found["eval_robust_accuracy"] == pytest.approx(robust.float().mean().item())
    assert found["eval_w_robust"] == pytest.approx((clean.float().mean() + robust.float().mean()).item() / 2)
    assert found["eval_loss"] == pytest.approx(torch.nn.functional.cross_entropy(model(images), data.labels).item())
    assert clean.sum() > 0 and robust.sum() < clean.sum()
    rows, table = measure({"student": tiny_net(0).eval()}, data, trainer.args)
    assert rows["student"] == {key: pytest.approx(found[f"eval_{key}"]) for key in rows["student"]}
    assert "| student |" in table and "PGD-5" in table and "n = 30 images" in table


def test_predictions_are_those_of_the_clean_images_as_in_any_trainer(make_trainer):
    data = tiny_data(30, seed=7)
    trainer = make_trainer(tiny_net(0), eps=0.1, eval_attack_step_size=0.03, eval_attack_steps=5)
    found = trainer.predict(data)
    with torch.no_grad():
        assert found.predictions == pytest.approx(tiny_net(0).eval()(data.images.float() / 255).numpy(), abs=1e-5)
    clean = found.predictions.argmax(-1) == found.label_ids
    robust = clean & (found.attacked_predictions.argmax(-1) == found.label_ids)
    assert [clean.mean(), robust.mean()] == [found.metrics[f"test_{key}_accuracy"] for key in ("clean", "robust")]
    predictions, labels, metrics = trainer.predict(data)
    assert len(predictions) == len(labels) == 30 and "test_w_robust" in metrics
    assert make_trainer(eval_attack=False).predict(data).attacked_predictions is None


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
    assert trainer.predict(data).predictions.shape == (10, 4)
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
    logits = trainer.predict(data).predictions
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


def test_inputs_of_a_plain_module_reach_the_metrics_that_ask_for_them(make_trainer):
    seen = []
    data = tiny_data(10, seed=5)
    trainer = make_trainer(
        eval_dataset=data,
        include_for_metrics=["inputs", "loss"],
        compute_metrics=lambda found: seen.append(found.inputs) or {"count": len(found.inputs)},
        per_device_eval_batch_size=4,
    )
    assert trainer.evaluate()["eval_count"] == 10
    assert torch.equal(torch.as_tensor(seen[0]), data.images.float() / 255)


def test_attack_can_be_left_out(make_trainer):
    found = make_trainer(eval_attack=False).evaluate()
    assert "eval_clean_accuracy" in found and "eval_w_robust" not in found


def test_persistent_workers_serve_their_own_data_set_alone(make_trainer):
    one, other = tiny_data(10, seed=5), tiny_data(9, seed=6)
    trainer = make_trainer(
        eval_dataset=one, eval_attack=False, dataloader_num_workers=1, dataloader_persistent_workers=True
    )
    plain = make_trainer(eval_dataset=one, eval_attack=False)
    expected = [plain.evaluate(rows)["eval_clean_accuracy"] for rows in (one, other)]
    assert expected[0] != expected[1]
    assert [trainer.evaluate()["eval_clean_accuracy"], trainer.evaluate(other)["eval_clean_accuracy"]] == expected
    assert trainer.evaluate(one)["eval_clean_accuracy"] == expected[0]
    assert trainer.get_eval_dataloader() is trainer.get_eval_dataloader(one)


def test_several_evaluation_sets_are_reported_by_name_with_persistent_workers_too(make_trainer):
    sets = {"a": tiny_data(30, seed=1), "b": tiny_data(30, seed=2)}
    found = make_trainer(eval_dataset=sets, dataloader_num_workers=1, dataloader_persistent_workers=True).evaluate()
    for name, data in sets.items():
        alone = make_trainer(eval_dataset=data).evaluate()
        assert found[f"eval_{name}_loss"] == alone["eval_loss"]
        assert found[f"eval_{name}_w_robust"] == alone["eval_w_robust"]


def test_tuples_and_a_collator_of_ones_own_work(make_trainer):
    data = tiny_data(16)
    pairs = [(data.images[i].float() / 255, int(data.labels[i])) for i in range(16)]

    def collate(rows):
        return {"pixel_values": torch.stack([x for x, _ in rows]), "labels": torch.tensor([y for _, y in rows])}

    own = make_trainer(data=pairs, eval_dataset=pairs, data_collator=collate)
    ours = make_trainer(data=data, eval_dataset=data)
    own.train(), ours.train()
    assert own.evaluate()["eval_w_robust"] == ours.evaluate()["eval_w_robust"]  # the same noise, nothing augmented
    assert torch.equal(own.model.head.weight, ours.model.head.weight)


def test_student_evaluated_before_training_still_trains_in_mixed_precision(make_trainer):
    seen = []
    student = tiny_net(0)
    student.head.register_forward_hook(lambda module, inputs, output: seen.append((module.training, output.dtype)))
    trainer = make_trainer(student, bf16=True)
    trainer.evaluate()
    trainer.train()
    assert {dtype for training, dtype in seen if training} == {torch.bfloat16}


def test_evaluation_restores_every_random_generator(make_trainer):
    import random

    import numpy as np

    trainer = make_trainer()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    trainer.evaluate()
    assert expected == (random.random(), np.random.rand(), torch.rand(1).item())
