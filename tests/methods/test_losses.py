import pytest
import torch

from bmtard_hooks.config import BMTARDConfig
from bmtard_hooks.methods import method_class, method_names
from bmtard_hooks.state import DistillationState


@pytest.mark.parametrize("name", ["natural", "sat", "trades"])
def test_loss_and_gradients_match_the_vectors(name, vectors, tmp_path):
    shared, expected = vectors["shared"], vectors["outer"][name]["expected"]
    logits = {
        k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in shared["logits"].items() if k[0] == "s"
    }
    method = method_class(name)(BMTARDConfig(output_dir=str(tmp_path), method=name))
    batch = {"pixel_values": "s_nat", "adv_pixel_values": "s_adv", "labels": torch.tensor(shared["labels"])}
    output = method.loss_parts(logits.__getitem__, {}, batch, DistillationState.create({}, method.weights))
    loss = sum(method.weights[part] * value for part, value in output.parts.items())
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-6)
    for view in ("nat", "adv"):
        gradient = logits[f"s_{view}"].grad
        gradient = torch.zeros(2, 3) if gradient is None else gradient
        found, wanted = gradient.flatten().tolist(), torch.tensor(expected[f"dloss_ds_{view}"]).flatten().tolist()
        assert found == pytest.approx(wanted, abs=1e-6)


def test_unknown_method_names_the_nearest():
    with pytest.raises(ValueError, match="unknown method 'bmtrad': did you mean bmtard"):
        method_class("bmtrad")
    assert {"bmtard", "mtard", "baseline", "natural", "sat", "trades"} <= set(method_names())


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
    ],
)
def test_ablations_are_a_choice_of_callbacks(method, options, expected, tmp_path):
    config = BMTARDConfig(output_dir=str(tmp_path), method=method, **options)
    assert [type(callback).__name__ for callback in method_class(method)(config).callbacks()] == expected


def test_inner_attacks_of_the_methods(tmp_path):
    attacks = {
        name: BMTARDConfig(output_dir=str(tmp_path), method=name).train_attack()
        for name in ("bmtard", "sat", "trades")
    }
    assert (attacks["bmtard"].start, attacks["bmtard"].clip_start, attacks["bmtard"].step_size) == (
        "normal",
        False,
        2 / 255,
    )
    assert (attacks["sat"].start, attacks["sat"].clip_start, attacks["sat"].step_size) == ("uniform", True, 2 / 255)
    assert (attacks["trades"].start, attacks["trades"].step_size) == ("normal", 0.007)
