import numpy as np
import pytest
import torch

from offramp.training.calibrate.measure_float import run_float
from offramp.training.data.datasets import Labelled
from offramp.training.models.networks import BACKBONES
from offramp.training.models.split_model import SplitModel


def test_measuring_leaves_the_model_as_it_is() -> None:
    torch.manual_seed(0)
    model = SplitModel(BACKBONES["tiny"](10, 32), 3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = Labelled(np.zeros((2, 3, 32, 32), np.uint8), np.zeros(2, np.int64))
    # A device that computes nothing: a model moved there has lost its weights.
    with pytest.raises(RuntimeError):
        run_float(model, data, torch.device("meta"))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
