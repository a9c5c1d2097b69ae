"""Options that do not exist are answered with those that may have been meant."""

from dataclasses import dataclass, replace

import pytest

from bmtard_hooks import BMTARDConfig
from bmtard_hooks.arguments import parse
from bmtard_hooks.methods import method_class
from bmtard_hooks.option_names import SYNONYMS, near_options

MEANT = {
    "epsilon": "eps",
    "num_steps": "steps",
    "temperature": "clean_temperature, robust_temperature",
    "evaluation_strategy": "eval_strategy",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "lr": "learning_rate",
    "temprature_rate": "temperature_rate",
}


@pytest.mark.parametrize("name", MEANT)
def test_unknown_keyword_is_named_with_what_may_have_been_meant(name, tmp_path):
    with pytest.raises(TypeError, match=f"BMTARDConfig has no option {name}=3: did you mean {MEANT[name]}"):
        BMTARDConfig(output_dir=str(tmp_path), **{name: 3})


@pytest.mark.parametrize("name", ["epsilon", "num_steps", "lr"])
def test_command_lines_and_files_know_the_same_names(name, tmp_path):
    with pytest.raises(ValueError, match=f"unknown option --{name}: did you mean --{MEANT[name]}"):
        parse([BMTARDConfig], ["--output_dir", str(tmp_path), f"--{name}", "3"])
    (tmp_path / "run.yaml").write_text(f"{name}: 3")
    with pytest.raises(ValueError, match=rf"run\.yaml: unknown option '{name}': did you mean {MEANT[name]}\?"):
        parse([BMTARDConfig], ["--config", str(tmp_path / "run.yaml")])


def test_synonyms_are_no_options_and_lead_to_options():
    known = set(BMTARDConfig.__dataclass_fields__)
    assert not known & set(SYNONYMS)
    assert {option for meant in SYNONYMS.values() for option in meant} <= known
    assert near_options("epsilon", {"epsilons"}) == ["epsilons"]


@dataclass
class Own(BMTARDConfig):
    """One more option."""

    further: int = 1


def test_configs_that_inherit_and_copies_still_work(make_config, tmp_path):
    assert Own(output_dir=str(tmp_path), further=2, use_cpu=True).further == 2
    assert replace(make_config(), eps=0.01).eps == 0.01
    with pytest.raises(TypeError, match="did you mean eps"):
        replace(make_config(), epsilon=0.01)


@pytest.mark.parametrize(("name", "meant"), [("BMTARD", "bmtard"), ("TRADES", "trades"), ("Adaad", "adaad")])
def test_methods_are_found_whatever_their_letters_case(name, meant):
    with pytest.raises(ValueError, match=f"unknown method '{name}': did you mean {meant}"):
        method_class(name)
