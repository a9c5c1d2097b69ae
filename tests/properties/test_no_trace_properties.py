"""An attack leaves no trace on any network, whatever it is made of, also when the attack breaks off."""

import random

import numpy as np
import torch
from conftest import sharp_net, tiny_net
from hypothesis import strategies as st
from proving import SEEDS, drawn_images, prove
from torch import nn

from bmtard_hooks import PGDCollator
from bmtard_hooks.attacks import attack_mode
from bmtard_hooks.methods.base import method_names


class Interrupted(Exception):
    pass


class Branches(nn.Module):
    """Adds up what its branches answer; they may share modules."""

    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, values):
        return sum(branch(values) for branch in self.branches)


@st.composite
def networks(draw):
    """A tree of modules in mixed modes, some shared, some frozen, with hooks and gradients of earlier steps."""
    torch.manual_seed(draw(SEEDS))
    norms = [nn.BatchNorm2d(3, momentum=draw(st.sampled_from([0.1, None]))), nn.BatchNorm2d(3, affine=False)]
    shared = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), norms[0])

    def tree(depth):
        made = [
            lambda: nn.Conv2d(3, 3, 3, padding=1, bias=draw(st.booleans())),
            lambda: nn.BatchNorm2d(3, track_running_stats=draw(st.booleans())),
            lambda: nn.Dropout(0.5),
            lambda: nn.ReLU(),
            lambda: norms[1],
            lambda: shared,
        ]
        parts = [draw(st.sampled_from(made))() for _ in range(draw(st.integers(1, 3)))]
        if depth and draw(st.booleans()):
            parts.append(Branches(nn.Sequential(nn.Identity(), tree(depth - 1)), shared))
        return nn.Sequential(nn.Conv2d(3, 3, 1), *parts)

    model = nn.Sequential(tree(2), nn.Flatten(), nn.Linear(3 * 16, 4))
    modules = list(model.modules())
    model(torch.rand(4, 3, 4, 4)).sum().backward()
    for module in modules:
        module.training = draw(st.booleans())
    for parameter in model.parameters():
        if draw(st.integers(0, 3)) == 0:
            parameter.requires_grad_(False)
        if draw(st.integers(0, 3)) == 0:
            parameter.grad = None
    hooked = draw(st.sampled_from(modules))
    hooked.register_forward_pre_hook(lambda module, inputs: None)
    hooked.register_forward_hook(lambda module, inputs, output: None)
    draw(st.sampled_from(modules[-2:])).register_full_backward_hook(lambda module, given, taken: None)
    return model


HOOKS = [
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs",
    "_state_dict_hooks", "_load_state_dict_pre_hooks",
]  # fmt: skip


def trace(model):
    """Everything that could tell that an attack was there: objects by identity, values bit by bit."""
    modules, tensors = list(model.modules()), [*model.parameters(), *model.buffers()]
    numbers = np.random.get_state()
    return {
        "modes": [module.training for module in modules],
        "modules": [id(module) for module in modules],
        "hooks": [{k: id(v) for k, v in getattr(module, name).items()} for module in modules for name in HOOKS],
        "attributes": [sorted(vars(module)) for module in modules],
        "tensors": [(id(tensor), tensor.detach().numpy().tobytes(), tensor.requires_grad) for tensor in tensors],
        "gradients": [None if p.grad is None else (id(p.grad), p.grad.numpy().tobytes()) for p in model.parameters()],
        "random": (torch.get_rng_state().tolist(), random.getstate(), numbers[1].tolist(), numbers[2]),
        "enabled": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def same(before, after):
    """Name what differs."""
    return [name for name in before if before[name] != after[name]]


def test_crafting_leaves_no_trace_also_when_it_raises(record_property):
    views = st.sampled_from([("adv_pixel_values",), ("adv_pixel_values", "second")])

    @prove(
        record_property, 120, model=networks(), seed=SEEDS, norm=st.sampled_from(["linf", "l2"]), gradients=st.booleans(),
        breaks_at=st.sampled_from([None, None, 1, 2, 4]), views=views,
        augment=st.sampled_from(["none", "crop_flip"]),
    )  # fmt: skip
    def law(model, seed, norm, gradients, breaks_at, views, augment):
        collator = PGDCollator(0.1, 0.05, 2, norm=norm, seed=seed, augment=augment, crop_padding=1)
        images, labels = drawn_images(seed, (3, 3, 4, 4), "random"), torch.tensor([0, 1, 2])
        asked = 0

        def objective(logits):
            nonlocal asked
            asked += 1
            if asked == breaks_at:
                raise Interrupted
            return nn.functional.cross_entropy(logits, labels, reduction="none")

        before = trace(model)
        try:
            with torch.set_grad_enabled(gradients):
                collator.craft(
                    model, {"pixel_values": images, "labels": labels}, key=(seed,), objective=lambda batch: objective,
                    views={view: {} for view in views},
                )  # fmt: skip
        except Interrupted:
            assert asked == breaks_at
        else:
            assert asked == 2 * len(views)
        assert same(before, trace(model)) == []


def test_foreign_attack_leaves_no_trace_whatever_it_does(record_property):
    deeds = st.lists(st.sampled_from(["train", "grad", "buffers", "seed", "freeze"]), min_size=1, max_size=5)

    @prove(record_property, 100, model=networks(), deeds=deeds, raises=st.booleans())
    def law(model, deeds, raises):
        def attack(images, labels):
            for deed in deeds:
                if deed == "train":
                    model.train()
                    model(images)
                elif deed == "grad":
                    for parameter in model.parameters():
                        parameter.grad = torch.ones_like(parameter)
                elif deed == "buffers":
                    for buffer in model.buffers():
                        buffer.add_(1)
                elif deed == "seed":
                    torch.manual_seed(1)
                else:
                    model.requires_grad_(False)
            if raises:
                raise Interrupted
            return images

        before = trace(model)
        try:
            batch = {"pixel_values": torch.full((2, 3, 4, 4), 0.5), "labels": torch.tensor([0, 1])}
            PGDCollator(attack=attack, augment="none").craft(model, batch)
        except Interrupted:
            assert raises
        assert same(before, trace(model)) == []


def test_modes_and_gradients_come_back_from_nested_attacks(record_property):
    @prove(record_property, 60, model=networks(), outer=st.booleans(), inner=st.booleans(), raises=st.booleans())
    def law(model, outer, inner, raises):
        before = trace(model)
        try:
            with attack_mode(model, foreign=outer), attack_mode(model, train_mode=inner):
                assert not any(parameter.requires_grad for parameter in model.parameters())
                assert not any(module.training for module in model.modules())
                if raises:
                    raise Interrupted
        except Interrupted:
            assert raises
        assert same(before, trace(model)) == []


def teacher_net(seed):
    net = sharp_net(seed, batch_norm=True, dropout=0.3)
    net.norm.running_mean.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(seed))
    return net.train()  # as a user may leave it


def test_teachers_are_bit_identical_after_training(make_trainer, record_property, tmp_path):
    cases = 0
    for name in method_names():
        for index, options in enumerate([{}, {"igdm_weight": 1.0}, {"awp_gamma": 0.05}]):
            if (name == "saad" or name in ("natural", "sat", "trades", "score")) and "igdm_weight" in options:
                continue
            given = {role: teacher_net(seed) for seed, role in enumerate(("clean", "robust", "robust_l2"))}
            before = {role: {k: v.clone() for k, v in net.state_dict().items()} for role, net in given.items()}
            trainer = make_trainer(
                tiny_net(0, batch_norm=True), method=name, teachers=given, steps=1, max_steps=2, eval_attack_steps=1,
                output_dir=str(tmp_path / f"{name}{index}"), eval_strategy="steps", eval_steps=2, **options,
            )  # fmt: skip
            trainer.train()
            for role, net in given.items():  # what the user passed, also where a copy of it is trained
                after = net.state_dict()
                assert [k for k, v in before[role].items() if not torch.equal(v, after[k])] == [], (name, role)
                assert all(parameter.grad is None for parameter in net.parameters()), (name, role)
            for role, teacher in trainer.teachers.items():
                kept = all(torch.equal(v, before[role][k]) for k, v in teacher.backbone.state_dict().items())
                assert kept or role in trainer.method.trained_teachers, (name, role)
            cases += 1
    record_property("properties", 1)
    record_property("property cases", cases)
