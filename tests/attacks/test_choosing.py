import pytest
import torch
import torchattacks
from conftest import tiny_net

from bmtard_hooks.attacks.choosing import choose_attacks
from bmtard_hooks.attacks.gradient import PGD
from bmtard_hooks.attacks.suite import ATTACKS, PRESETS
from bmtard_hooks.options import read_number


def test_the_paper_preset_has_every_column_of_its_tables():
    plan = choose_attacks("paper", surrogate=tiny_net(), surrogate_name="robust teacher")
    assert list(plan.columns) == list(PRESETS["paper"])
    assert plan.columns["autoattack"] == ["apgd_ce", "apgd_t", "fab_t", "square_5000"]
    assert plan.attacks["transfer_cw"].settings()["surrogate"] == "robust teacher"
    assert plan.attacks["pgd_sat"] == PGD(steps=20, step_size=2 / 255, start="uniform")
    assert (
        plan.attacks["cw_inf"].settings() | {"loss": "margin", "steps": 30, "kappa": 50}
        == plan.attacks["cw_inf"].settings()
    )
    assert plan.warnings == []


def test_a_preset_leaves_out_what_cannot_run_and_says_so():
    plan = choose_attacks("paper")
    assert "transfer_pgd" not in plan.columns and any("transfer_pgd was left out" in line for line in plan.warnings)
    in_l2 = choose_attacks("paper", norm="l2", eps=0.5)
    assert "rays" not in in_l2.columns and any(
        "rays was left out: it does not know the norm l2" in w for w in in_l2.warnings
    )
    assert in_l2.attacks["pgd_sat"].step_size == pytest.approx(2 / 255 * 0.5 / (8 / 255))


def test_asked_for_by_name_an_attack_that_cannot_run_is_an_error():
    with pytest.raises(ValueError, match="surrogate="):
        choose_attacks("transfer_pgd")
    with pytest.raises(ValueError, match="knows linf"):
        choose_attacks("rays", norm="l2")


def test_settings_after_a_colon_make_a_column_of_their_own():
    plan = choose_attacks(["pgd_sat", "pgd_sat:steps=50,restarts=2", "square:rescale_schedule=false,eps=4/255"])
    assert list(plan.columns) == ["pgd_sat", "pgd_sat:steps=50,restarts=2", "square:rescale_schedule=false,eps=4/255"]
    changed = plan.attacks["pgd_sat:steps=50,restarts=2"]
    assert (changed.steps, changed.restarts, changed.step_size) == (50, 2, 2 / 255)
    square = plan.attacks["square:rescale_schedule=false,eps=4/255"]
    assert square.rescale_schedule is False and square.eps == 4 / 255


def test_every_ambiguity_of_the_paper_is_a_named_setting():
    words = ["fgsm:start=uniform", "pgd_trades:start=normal", "square:rescale_schedule=false"]
    plan = choose_attacks(words)
    assert [plan.attacks[words[0]].start, plan.attacks[words[1]].start] == ["uniform", "normal"]
    assert plan.attacks[words[2]].replace(images=None) == ATTACKS["square_literal"]


def test_unions_and_transfers_take_settings_too():
    plan = choose_attacks(["autoattack:images=100", "transfer_pgd:steps=3"], surrogate=tiny_net())
    assert all(plan.attacks[part].images == 100 for part in plan.columns["autoattack:images=100"])
    assert plan.attacks["transfer_pgd:steps=3"].attack.steps == 3


def test_a_part_shared_with_autoattack_is_one_attack():
    plan = choose_attacks(["apgd_ce", "autoattack"])
    assert list(plan.attacks).count("apgd_ce") == 1 and "apgd_ce" in plan.columns["autoattack"]


def test_a_name_stands_for_one_attack_only():
    assert list(choose_attacks(["fgsm", "quick", "fgsm"]).columns) == ["fgsm", *PRESETS["quick"][1:]]
    plan = choose_attacks({"apgd_ce": "apgd_ce:steps=1", "autoattack": "autoattack"})
    assert plan.columns["autoattack"] == ["autoattack/apgd_ce", "apgd_t", "fab_t", "square_5000"]
    assert plan.attacks["apgd_ce"].steps == 1 and plan.attacks["autoattack/apgd_ce"].steps == 100


def test_settings_of_ones_own_take_the_place_of_the_presets():
    columns = list(choose_attacks(["quick", "pgd_sat:steps=50"]).columns)
    assert "pgd_sat" not in columns and columns[-1] == "pgd_sat:steps=50" and len(columns) == len(PRESETS["quick"])


def test_objects_callables_and_names_of_ones_own():
    net = tiny_net().eval()
    plan = choose_attacks(
        {"mine": PGD(steps=3), "theirs": torchattacks.PGD(net, eps=8 / 255, steps=2), "strong": "cw_inf"}
    )
    assert list(plan.columns) == ["mine", "theirs", "strong"]
    assert plan.attacks["theirs"].eps == 8 / 255

    def nothing(images, labels):
        return images

    assert list(choose_attacks([nothing], eps=0.1).attacks) == ["nothing"]
    assert choose_attacks(nothing, eps=0.1).attacks["nothing"].eps == 0.1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("pgd_sta", "did you mean pgd_sat"),
        ("pgd_sat:step=3", "did you mean"),
        ("pgd_sat:steps", "setting=value"),
        ("pgd_sat:eps=8", "8/255"),
        ("pgd_sat:steps=abc", "expected a whole number"),
        ("pgd_sat:eps=none", "expected a number or a fraction"),
        ("square:rescale_schedule=2", "expected true or false"),
        ("square:images=2.5", "expected a whole number"),
        ("paper:steps=3", "a list of attacks"),
        ([], "list is empty"),
    ],
)
def test_mistakes_are_named_with_the_nearest_right_word(words, message):
    with pytest.raises(ValueError, match=message):
        choose_attacks(words)


def test_an_attack_whose_steps_do_not_reach_the_radius_is_warned_about():
    plan = choose_attacks(["fgsm", "pgd_trades", "pgd_sat"], eps=16 / 255)
    assert len(plan.warnings) == 1 and "pgd_trades makes 20 steps of 0.003" in plan.warnings[0]
    step = plan.warnings[0].split("for example ")[1].rstrip(".")
    assert not choose_attacks(step, eps=16 / 255).warnings
    assert choose_attacks("transfer_pgd", eps=0.5, surrogate=torch.nn.Identity()).warnings
    assert not choose_attacks("white_box", eps=0.5, norm="l2").warnings


def test_numbers_may_be_fractions():
    assert read_number("8/255") == 8 / 255 and read_number("0.031") == 0.031
    for wrong in ("8/0", "eight"):
        with pytest.raises(ValueError):
            read_number(wrong)


def test_settings_of_every_attack_are_plain_json():
    import json

    plan = choose_attacks("paper", surrogate=torch.nn.Identity())
    for attack in plan.attacks.values():
        assert json.loads(json.dumps(attack.settings())) == attack.settings()


@pytest.mark.parametrize("attack", ["pgd_sat:eps=0.5", "pgd_sat:steps=3"])
def test_step_that_a_warning_names_can_be_passed_and_is_long_enough(attack):
    (warning,) = choose_attacks(attack).warnings
    advised = warning.rpartition("for example ")[2].rstrip(".")
    assert advised.startswith(attack) and not choose_attacks(advised).warnings
