"""FSDP2 on two processes: a sharded student is attacked, trained, saved and resumed as a whole one is."""

from types import SimpleNamespace

import pytest
from accelerate.utils import FullyShardedDataParallelPlugin, compare_versions
from conftest import tiny_net
from forked_ranks import run
from launching import FILES
from train_sharded_two_ranks import NEARLY, VARIANTS, main

from bmtard_hooks import RobustEvaluation, sharding
from bmtard_hooks.callbacks.adversarial_weights import AdversarialWeightPerturbation
from bmtard_hooks.callbacks.weight_averaging import WeightAveraging
from bmtard_hooks.sharding import check_sharding

STEPS = 4  # of every run


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    if not compare_versions("accelerate", ">=", sharding.TRIED_WITH):
        pytest.skip("FSDP2 is refused with this accelerate")
    flags = ["--num_processes", 2, "--mixed_precision", "no"]
    return {
        name: run(main, tmp_path_factory.mktemp(name), flags=["--config_file", FILES / f"{name}.yaml", *flags])
        for name in ("fsdp2", "multi_gpu")
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_sharded_student_equals_a_whole_one_bit_by_bit(ranks, name):
    for sharded, whole in zip(ranks["fsdp2"], ranks["multi_gpu"], strict=True):
        one, other = sharded["left"][name], whole["left"][name]
        assert one["sharded"] and not other["sharded"]
        assert len(one["crafted"]) == STEPS and one["crafted"] == other["crafted"]
        assert one["digest"] == other["digest"] and one["state"] == other["state"]
        assert one["evaluation"] == other["evaluation"]


@pytest.mark.parametrize("name", NEARLY)
def test_sharded_student_equals_a_whole_one_but_for_rounding(ranks, name):
    one, other = (ranks[kind][0]["left"][name] for kind in ("fsdp2", "multi_gpu"))
    assert one["sharded"] and not other["sharded"]
    for left, right in zip(one["student"], other["student"], strict=True):
        assert left == pytest.approx(right, rel=1e-4, abs=1e-6)


def test_sharded_student_is_attacked_itself_where_a_folded_copy_is_asked_for(ranks):
    sharded = ranks["fsdp2"][0]["left"]
    assert sharded["folding"]["crafted"] == sharded["bmtard"]["crafted"]


@pytest.mark.parametrize("kind", ["fsdp2", "multi_gpu"])
def test_both_ranks_have_the_same_student(ranks, kind):
    one, other = (rank["left"] for rank in ranks[kind])
    assert {name: left["digest"] for name, left in one.items()} == {n: left["digest"] for n, left in other.items()}


def test_evaluation_before_any_training_sees_the_whole_student(ranks):
    assert ranks["fsdp2"][0]["before"] == ranks["multi_gpu"][0]["before"]


@pytest.mark.parametrize("name", ["bmtard", "accumulated"])
def test_resumed_sharded_run_is_bit_exact(ranks, name):
    for rank in ranks["fsdp2"]:
        straight, resumed = rank["left"][name], rank["resumed"][name]
        assert resumed["digest"] == straight["digest"] and resumed["state"] == straight["state"]
        assert 0 < len(resumed["crafted"]) < len(straight["crafted"])


def test_saved_sharded_student_is_a_whole_one(ranks):
    assert ranks["fsdp2"][0]["saved"] == ranks["fsdp2"][0]["left"]["bmtard"]["digest"]


def test_weights_are_gathered_once_a_step_however_long_the_attack(ranks):
    assert ranks["fsdp2"][0]["sent"]["one group"] == {"foreach_all_gather": STEPS, "foreach_reduce": STEPS}


def test_second_training_of_a_sharded_student_is_refused(ranks):
    assert "make a new Trainer" in ranks["fsdp2"][0]["again"]


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # Accelerate's plugin writes it; this puts it back
    if not compare_versions("accelerate", ">=", sharding.TRIED_WITH):
        monkeypatch.setattr(sharding, "TRIED_WITH", "1")


def fake(plugin=None, *, collator=None, callbacks=(), deepspeed=False, precision="no", parallel=None, **options):
    args = dict(deepspeed=None, fsdp=True, torch_compile=False, auto_find_batch_size=False, sync_batch_norm=False)
    settings = FullyShardedDataParallelPlugin(**{
        **dict(fsdp_version=2, state_dict_type="FULL_STATE_DICT", reshard_after_forward=True), **(plugin or {})
    })  # fmt: skip
    return SimpleNamespace(
        args=SimpleNamespace(**{**args, **options}),
        is_fsdp_enabled=True,
        is_deepspeed_enabled=deepspeed,
        accelerator=SimpleNamespace(
            state=SimpleNamespace(fsdp_plugin=settings), mixed_precision=precision, parallelism_config=parallel
        ),
        callback_handler=SimpleNamespace(callbacks=list(callbacks)),
        data_collator=collator,
        model=tiny_net(0),
    )


def test_fsdp2_with_nothing_in_its_way_is_accepted():
    check_sharding(fake())
    check_sharding(fake(precision="bf16"))


@pytest.mark.parametrize(
    "trainer, message",
    [
        (dict(deepspeed=True), "DeepSpeed is not supported"),
        (dict(plugin=dict(fsdp_version=1, reshard_after_forward="FULL_SHARD")), "FSDP version 1 is not supported"),
        (dict(plugin=dict(state_dict_type="SHARDED_STATE_DICT")), "save_model writes nothing"),
        (dict(plugin=dict(activation_checkpointing=True)), "moves BatchNorm's statistics twice"),
        (dict(plugin=dict(cpu_ram_efficient_loading=True)), "fsdp_cpu_ram_efficient_loading must be false"),
        (dict(plugin=dict(cpu_offload=True)), "fsdp_offload_params"),
        (dict(torch_compile=True), "torch_compile"),
        (dict(precision="fp16"), "mixed precision fp16"),
        (dict(auto_find_batch_size=True), "auto_find_batch_size"),
        (dict(sync_batch_norm=True), "sync_batch_norm"),
        (dict(parallel=object()), "parallelism_config"),
        (dict(callbacks=[AdversarialWeightPerturbation()]), "adversarial weight perturbation"),
        (dict(callbacks=[WeightAveraging()]), "weight averaging copies"),
        (dict(callbacks=[object.__new__(RobustEvaluation)]), "RobustEvaluation"),
        (dict(collator=SimpleNamespace(attack=print)), "attack= of PGDCollator"),
    ],
)
def test_what_a_sharded_student_cannot_do_is_refused_by_name(trainer, message):
    with pytest.raises(ValueError, match=message):
        check_sharding(fake(**trainer))


def test_accelerate_that_fsdp2_was_not_tried_with_is_refused(monkeypatch):
    monkeypatch.setattr(sharding, "TRIED_WITH", "99")
    with pytest.raises(ValueError, match="FSDP2 needs accelerate 99"):
        check_sharding(fake())


def test_sharding_that_would_not_happen_is_refused(monkeypatch, make_trainer):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="would train whole copies here"):
        make_trainer()
