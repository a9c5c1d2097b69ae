import json

import pytest
import torch
from conftest import FIXTURES
from torch import nn

from bmtard_hooks.batch_statistics import estimate_statistics


@pytest.fixture(scope="module")
def numbers():
    return json.loads((FIXTURES / "rival_vectors.json").read_text())["weight_averaging"]


@pytest.mark.parametrize(("by_sample", "key"), [(True, "bn_sample_weighted"), (False, "bn_batch_equal")])
def test_estimated_statistics_are_the_vectors(numbers, by_sample, key):
    model = nn.Sequential(nn.BatchNorm1d(1, momentum=0.3), nn.Dropout(0.5))
    model[0].running_mean.fill_(99)
    model[0].num_batches_tracked.fill_(7)
    model[1].eval()
    batches = [torch.tensor(batch, dtype=torch.float32)[:, None] for batch in numbers["config"]["bn_batches"]]
    estimate_statistics(model, model, batches, by_sample)
    expected = numbers["expected"][key]
    assert model[0].running_mean.item() == pytest.approx(expected["mean"], abs=1e-6)
    assert model[0].running_var.item() == pytest.approx(expected["var"], abs=1e-6)
    assert model[0].momentum == 0.3 and model[0].training and not model[1].training
