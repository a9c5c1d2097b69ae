"""Every method's loss, and its gradient at the student's logits, against numbers checked with the authors' code."""

import pytest
import torch
from vector_scene import Scene, assert_matches

from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.methods import make_method, method_class, method_names

ELEMENT_MEAN = {"loss_scale": 1 / 3}  # over 3 classes
LATE = {"epoch": 60, "epochs": 200}
CASES = {
    "natural": ("natural", {}),
    "sat": ("sat", {}),
    "trades": ("trades", {}),
    "score_noextra_clip_total": ("score", {}),
    "score_noextra_clip_kl_only": ("score", {"score_clip_robust_only": True}),
    "score_noextra_noclip": ("score", {"score_clip": 0.0}),
    "score_main_beta4_noclip": ("score", {"score_clip": 0.0, "score_lambda": 4.0}),
    "ard_cifar10": ("ard", ELEMENT_MEAN),
    "ard_cifar100_tiny": ("ard", {**ELEMENT_MEAN, "ard_temperature": 5.0, "ard_alpha": 0.95}),
    "rslad_cifar10": ("rslad", ELEMENT_MEAN),
    "rslad_cifar100": ("rslad", {"loss_scale": 10 / 3}),
    "fair_ard_cifar10": ("fair_ard", ELEMENT_MEAN),
    "fair_ard_T5_a095": ("fair_ard", {**ELEMENT_MEAN, "ard_temperature": 5.0, "ard_alpha": 0.95}),
    "absld_separate_targets": ("absld", {**ELEMENT_MEAN, "absld_targets": "separate"}),
    "absld_aliased_targets": ("absld", ELEMENT_MEAN),
    "lmtn_own_input": ("lmtn", ELEMENT_MEAN),
    "lmtn_clean_input": ("lmtn", {**ELEMENT_MEAN, "lmtn_teacher_input": "clean"}),
    "iad1_before_begin": ("iad", {}),
    "iad1_after_begin": ("iad", {}),
    "iad2_before_begin": ("iad", {"iad_variant": 2}),
    "iad2_after_begin": ("iad", {"iad_variant": 2}),
}


def test_every_vector_has_a_case(vectors):
    assert set(CASES) == set(vectors["outer"]) - {"score_clip_bounds"}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_match_the_vectors(name, vectors, tmp_path):
    method, options = CASES[name]
    case = vectors["outer"][name]
    scene = Scene(vectors["shared"], tmp_path, method, **options)
    for group, key in (
        ("weight", "class_weight"),
        ("robust_temperature", "class_temp_adv"),
        ("clean_temperature", "class_temp_nat"),
    ):
        if key in case["config"]:
            scene.state.per_class[group] = torch.tensor(case["config"][key], dtype=torch.float64)
    scene.state.epochs = 200
    if name.startswith("iad"):  # the first epoch with the student's own term, and the last one without
        begin = 60 if "iad1" in name else 40
        scene.state.epoch = begin if "after" in name else begin - 1
    assert_matches(scene, case["expected"])


@pytest.mark.parametrize("classes, bound", [(3, 0.135), (10, 0.1), (100, 0.090909), (200, 0.090452)])
def test_scores_clip_is_the_error_of_a_prediction_that_is_a_little_short(classes, bound, tmp_path):
    method = make_method(BMTARDConfig(output_dir=str(tmp_path), method="score"))
    probs = torch.full((1, classes), 0.3 / (classes - 1), dtype=torch.float64)
    probs[0, 0] = 0.7
    label_error = ((probs - torch.eye(classes, dtype=torch.float64)[:1]) ** 2).sum().item()
    assert label_error == pytest.approx(bound, abs=1e-6)
    batch = {"pixel_values": probs.log(), "adv_pixel_values": probs.log(), "labels": torch.tensor([0])}
    assert method.loss_parts(lambda logits: logits, {}, batch, None).parts["score"].item() == pytest.approx(
        0, abs=1e-7
    )
    batch["adv_pixel_values"] = 0.9 * batch["adv_pixel_values"]
    assert method.loss_parts(lambda logits: logits, {}, batch, None).parts["score"].item() > 1e-4


@pytest.mark.parametrize(
    "method, options, epoch, forwards",
    [
        ("natural", {}, 0, "nat"),
        ("sat", {}, 0, "adv"),
        ("trades", {}, 0, "nat adv nat"),
        ("score", {}, 0, "adv nat"),
        ("ard", {}, 0, "adv nat"),
        ("fair_ard", {}, 0, "adv nat"),
        ("rslad", {}, 0, "adv nat"),
        ("absld", {}, 0, "adv nat"),
        ("mtard", {}, 0, "adv nat"),
        ("bmtard", {}, 0, "adv nat"),
        ("baseline", {}, 0, "adv nat"),
        ("lmtn", {}, 0, "adv nat"),
        ("iad", {}, 0, "adv adv nat"),
        ("iad", {}, 60, "adv adv nat nat"),
        ("iad", {"iad_variant": 2}, 0, "adv"),
        ("iad", {"iad_variant": 2}, 60, "adv nat"),
        ("adaad", {}, 0, "nat adv"),
        ("adaad", {"adaad_clean_forward": False}, 0, "adv"),
        ("adaiad", {}, 0, "nat adv nat"),
        ("adaiad", {}, 60, "nat adv nat nat"),
        ("ciard", {}, 0, "nat adv"),
        ("saad", {}, 0, "adv nat nat"),  # the first nat is the mirrored image
        ("bmtard", {"igdm_weight": 1.0}, 0, "adv nat nat"),  # the last nat is the mirrored image
        ("adaad", {"igdm_weight": 1.0, "adaad_clean_forward": False}, 0, "adv nat"),
    ],
)
def test_student_forwards_in_the_authors_order(method, options, epoch, forwards, vectors, tmp_path):
    scene = Scene(vectors["shared"], tmp_path, method, **options)
    scene.state.epoch, scene.state.epochs = epoch, 200
    scene.run()
    assert " ".join(scene.student_calls) == forwards


def test_unknown_method_names_the_nearest():
    with pytest.raises(ValueError, match="unknown method 'bmtrad': did you mean bmtard"):
        method_class("bmtrad")
    papers = [
        "natural",
        "sat",
        "trades",
        "score",
        "ard",
        "rslad",
        "fair_ard",
        "absld",
        "iad",
        "mtard",
        "lmtn",
        "baseline",
        "bmtard",
    ]
    assert {*papers, "adaad", "adaiad", "saad", "ciard", "bmtard_union"} == set(method_names())


@pytest.mark.parametrize(
    "method, options, expected",
    [
        ("bmtard", {}, ["EntropyBalance", "LossBalance"]),
        ("mtard", {}, ["LossBalance"]),
        ("baseline", {}, []),
        ("baseline", {"entropy_balance": True}, ["EntropyBalance"]),
        ("baseline", {"loss_balance": True}, ["LossBalance"]),
        ("bmtard", {"loss_balance": False}, ["EntropyBalance"]),
        ("natural", {}, []),
        ("rslad", {"loss_balance": True}, ["LossBalance"]),
        ("fair_ard", {}, ["ClassWeightBalance"]),
        ("absld", {"loss_balance": True}, ["LossBalance", "ClassTemperatureBalance"]),
        ("ciard", {}, ["EntropyBalance", "PushScale", "TeacherTraining"]),
        ("ciard", {"ciard_weighted": True}, ["EntropyBalance", "LossBalance", "PushScale", "TeacherTraining"]),
        ("bmtard_union", {}, ["EntropyBalance", "LossBalance"]),
    ],
)
def test_ablations_are_a_choice_of_callbacks(method, options, expected, tmp_path):
    config = BMTARDConfig(output_dir=str(tmp_path), method=method, **options)
    assert [type(callback).__name__ for callback in make_method(config).callbacks()] == expected


@pytest.mark.parametrize(
    "method, options, message",
    [
        ("sat", {"loss_balance": True}, "loss_balance=True has nothing to do: method 'sat' has 1 loss part"),
        ("rslad", {"entropy_balance": True}, "entropy_balance=True has nothing to do: method 'rslad' has no two"),
        ("natural", {"igdm_weight": 1.0}, "igdm_weight needs adversarial images, and method 'natural' has none"),
        ("ard", {"robust_weight": 0.0}, "the weights of method 'ard' are all 0"),
        ("sat", {"clean_weight": 0.5}, "clean_weight=0.5 has nothing to weigh: method 'sat' has robust as loss parts"),
        (
            "rslad",
            {"igdm_weight": 1.0, "igdm_balanced": True},
            "igdm_balanced=True has nothing to do: method 'rslad' does",
        ),
        ("bmtard", {"igdm_balanced": True}, "igdm_balanced=True has nothing to do: pass igdm_weight too"),
    ],
)
def test_what_cannot_work_is_refused_with_the_config(method, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        BMTARDConfig(output_dir=str(tmp_path), method=method, **options)


@pytest.mark.parametrize(
    "method, given, weights",
    [
        ("rslad", {}, {"robust": 5 / 6, "clean": 1 / 6}),
        ("rslad", {"robust_weight": 3, "clean_weight": 1}, {"robust": 0.75, "clean": 0.25}),
        ("trades", {}, {"clean": 1.0, "robust": 6.0}),
        ("bmtard", {"robust_weight": 0.9, "clean_weight": 0.1}, {"robust": 0.9, "clean": 0.1}),
        ("bmtard_union", {}, {"robust": 1 / 3, "robust_l2": 1 / 3, "clean": 1 / 3}),
        ("ciard", {}, {"robust": 1.0, "clean": 1.0, "push": 0.0, "teacher": 1.0}),
        ("ciard", {"robust_weight": 3}, {"robust": 1.5, "clean": 0.5, "push": 0.0, "teacher": 1.0}),
        (
            "rslad",
            {"robust_weight": 3, "clean_weight": 1, "igdm_weight": 2},
            {"robust": 0.75, "clean": 0.25, "igdm": 1},
        ),
        (
            "bmtard_union",
            {"robust_weight": 3, "clean_weight": 1},
            {"robust": 1 / 2, "robust_l2": 1 / 3, "clean": 1 / 6},
        ),
    ],
)
def test_configured_weights_keep_the_methods_sum(method, given, weights, tmp_path):
    config = BMTARDConfig(output_dir=str(tmp_path), method=method, **given)
    assert make_method(config).weights == pytest.approx(weights)
