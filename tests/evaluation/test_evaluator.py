import numpy as np
import pytest
import torch
import torchattacks
from conftest import tiny_data, tiny_net
from scene import short, trained

from bmtard_hooks import evaluate_robustness
from bmtard_hooks.attacks.gradient import PGD
from bmtard_hooks.evaluation.runner import AttackRunner
from bmtard_hooks.image_tensors import ImageTensors

CHEAP = {
    "fgsm": "fgsm",
    "pgd": "pgd_sat:steps=4",
    "aa": "autoattack:images=20",
    "square": "square:queries=12",
    "rays": "rays:queries=20",
}


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    from bmtard_hooks.attacks import choosing

    quick = {"apgd_ce": 8, "apgd_t": 5, "fab_t": 5}
    few = {name: choosing.ATTACKS[name].replace(steps=steps) for name, steps in quick.items()}
    few["square_5000"] = choosing.ATTACKS["square_5000"].replace(queries=20)
    monkeypatch.setattr(choosing, "ATTACKS", {**choosing.ATTACKS, **few})


@pytest.fixture(scope="module")
def scene():
    return trained()


def bits(report):
    return {name: outcome.broken.tolist() for name, outcome in report.outcomes.items()}


def test_every_column_counts_clean_mistakes_as_not_robust_and_attacks_only_the_rest(scene):
    net, data = scene
    report = evaluate_robustness(net, data, CHEAP, **short())
    with torch.no_grad():
        correct = (net(data.pixels(slice(None))).argmax(1) == data.labels).numpy()
    assert np.array_equal(report.correct, correct) and 0 < correct.sum() < 40
    assert list(report.columns) == [*CHEAP, "worst_case"]
    for name in ("fgsm", "pgd", "square", "rays"):
        assert np.array_equal(report.outcomes[name].attacked, correct)
        assert not (report.robust(name) & ~correct).any()
    row = report.row("pgd")
    assert row.w_robust == pytest.approx((row.clean + row.robust) / 2) and row.images == 40
    assert 0 < row.robust < row.clean
    assert report.row("worst_case").robust <= min(
        report.row(name).robust for name in ("fgsm", "pgd", "square", "rays")
    )


def test_parts_of_autoattack_see_what_the_earlier_ones_left(scene):
    net, data = scene
    report = evaluate_robustness(net, data, "autoattack", **short())
    parts = report.columns["autoattack"]
    alive = report.correct.copy()
    for part in parts:
        assert np.array_equal(report.outcomes[part].attacked, alive)
        alive &= ~report.outcomes[part].broken
    assert np.array_equal(report.robust("autoattack"), alive)


def test_worst_case_finds_the_same_union_with_fewer_passes(scene):
    net, data = scene
    attacks = {name: word for name, word in CHEAP.items() if name != "aa"}
    columns = evaluate_robustness(net, data, attacks, **short())
    worst = evaluate_robustness(net, data, attacks, mode="worst_case", **short())
    assert list(worst.columns) == ["worst_case"]
    assert np.array_equal(worst.robust("worst_case"), columns.robust("worst_case"))
    passes = [sum(o.forwards + o.backwards for o in report.outcomes.values()) for report in (columns, worst)]
    assert passes[1] < passes[0]


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_batch_size_changes_no_outcome(scene, batch_size):
    net, data = scene
    first = evaluate_robustness(net, data, CHEAP, **short())
    second = evaluate_robustness(net, data, CHEAP, **short(batch_size=batch_size))
    assert bits(first) == bits(second)
    assert np.array_equal(first.outcomes["square"].queries, second.outcomes["square"].queries)


def test_another_seed_is_another_noise(scene):
    net, data = scene
    queries = [
        evaluate_robustness(net, data, "square:queries=40", **short(seed=seed)).outcomes["square:queries=40"].queries
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(queries[0], queries[1]) and not np.array_equal(queries[0], queries[2])


def test_folding_batch_norm_changes_no_verdict(scene):
    net, data = scene
    folded = evaluate_robustness(net, data, CHEAP, **short())
    plain = evaluate_robustness(net, data, CHEAP, **short(fold_batch_norm=False))
    assert folded.environment["folded_batch_norm"] and not plain.environment["folded_batch_norm"]
    assert bits(folded) == bits(plain)


@pytest.mark.parametrize("die_at", [1, 3, 6, 9])
def test_a_killed_evaluation_goes_on_and_gives_the_same_numbers(scene, tmp_path, monkeypatch, die_at):
    net, data = scene
    whole = evaluate_robustness(net, data, CHEAP, **short())
    batches = []
    original = AttackRunner._batch

    def until_killed(self, *args):
        batches.append(None)
        if len(batches) == die_at:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(AttackRunner, "_batch", until_killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate_robustness(net, data, CHEAP, state_dir=tmp_path, **short())
    counted = len(batches) - 1
    resumed = evaluate_robustness(net, data, CHEAP, state_dir=tmp_path, **short(batch_size=5))
    assert bits(resumed) == bits(whole)
    assert resumed.outcomes["square"].queries.tolist() == whole.outcomes["square"].queries.tolist()
    assert resumed.outcomes["fgsm"].forwards == whole.outcomes["fgsm"].forwards
    batches.clear()
    die_at = 10**9
    again = evaluate_robustness(net, data, CHEAP, state_dir=tmp_path, **short())
    assert bits(again) == bits(whole) and not batches, "nothing was left to do"
    assert counted == max(0, counted)


def test_state_of_other_weights_images_seeds_or_settings_is_never_used(scene, tmp_path):
    net, data = scene
    first = evaluate_robustness(net, data, "square:queries=40", state_dir=tmp_path, **short())
    other = evaluate_robustness(net, data, "square:queries=40", state_dir=tmp_path, **short(seed=1))
    assert not np.array_equal(first.outcomes["square:queries=40"].queries, other.outcomes["square:queries=40"].queries)
    flipped = evaluate_robustness(tiny_net(5).eval(), data, "fgsm", state_dir=tmp_path, **short())
    fresh = evaluate_robustness(tiny_net(5).eval(), data, "fgsm", **short())
    assert bits(flipped) == bits(fresh)
    assert len(list(tmp_path.glob("*.npz"))) == 3 and not list(tmp_path.glob("*.partial"))


def test_the_model_is_left_as_it_was(scene):
    net, data = tiny_net(0, batch_norm=True, dropout=0.5).train(), scene[1]
    net.norm.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    random = torch.get_rng_state()
    report = evaluate_robustness(net, data, {"pgd": PGD(steps=2), "theirs": torchattacks.PGD(net, steps=2)}, **short())
    assert any("was in training mode" in warning for warning in report.warnings)
    assert net.training and net.dropout.training and not net.norm.training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_names_of_the_report_come_from_what_was_given(scene):
    net, data = scene
    report = evaluate_robustness(net, data, "fgsm", dataset_name="toy", **short())
    assert report.model == "TinyNet" and report.dataset == "toy" and report.label_names == data.label_names
    environment = report.environment
    assert (
        environment["seed"] == 0 and environment["packages"]["torch"] and environment["attacks"]["fgsm"]["steps"] == 1
    )


def test_examples_repeat_the_strongest_cheap_attack(scene):
    net, data = scene
    report = evaluate_robustness(net, data, {"fgsm": "fgsm", "pgd": "pgd_sat"}, examples=3, **short())
    assert len(report.examples) == 3 and {example.attack for example in report.examples} == {"pgd"}
    for example in report.examples:
        assert report.outcomes["pgd"].broken[example.index] and example.prediction != example.label
        assert np.abs(example.adversarial.astype(int) - example.clean).max() in (7, 8)


def test_three_classes_fall_back_in_autoattack_and_the_report_says_so():
    net = tiny_net(0, num_classes=3).eval()
    images = tiny_data(12, seed=3).images
    data = ImageTensors(images, net(images.float() / 255).argmax(1))
    report = evaluate_robustness(net, data, "autoattack", **short())
    assert any(warning.startswith("apgd_t: ") for warning in report.warnings)


def test_models_by_name_and_directory(scene, tmp_path):
    from bmtard_hooks import create_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        create_model("resnet8_cifar", 4, mean=[0.4] * 3, std=[0.2] * 3).backbone.save_pretrained(tmp_path / "net")
    data = tiny_data(6, size=32)
    report = evaluate_robustness(str(tmp_path / "net"), data, "fgsm", **short())
    assert report.model == "net" and report.num_classes == 4
    with pytest.raises(ValueError, match="no pretrained weights"):
        evaluate_robustness("resnet8_cifar", data, "fgsm", **short())


def test_the_verdict_says_whether_autoattack_was_among_the_attacks(scene):
    net, data = scene
    assert "AutoAttack was not run" in evaluate_robustness(net, data, "fgsm", **short()).verdict
    for mode in ("columns", "worst_case"):
        assert "AutoAttack" not in evaluate_robustness(net, data, "autoattack:eps=4/255", mode=mode, **short()).verdict
