"""Which operators make the noise: a graph quantized in part is as far off as the quantizer's own."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from offramp.common.part.session import session
from offramp.training.split.divergence import divergence
from offramp.training.split.quantizer import Quantizer, named
from offramp.training.split.sensitivity import Switched, fewest_in_float, noisiest
from tests.training.split.test_quantize import convolutions, inputs


class Both:
    """A graph, ONNX Runtime's quantizer for it, and the trial."""

    def __init__(self, folder: Path, *, hostile: bool) -> None:
        self.model = named(convolutions(hostile=hostile))
        self.quantizer = Quantizer(self.model, "x", inputs(), folder)
        self.held_out = inputs(20)
        self.trial = Switched(
            self.model, self.quantizer.quantized(()), "x", self.held_out, self.quantizer.may_be_integer
        )

    def run(self, model: onnx.ModelProto) -> np.ndarray:
        (found,) = session(model.SerializeToString(), threads=1).run(None, {"x": self.held_out})
        return np.asarray(found)

    def decibels(self, in_float: tuple[str, ...]) -> tuple[float, float]:
        """By the quantizer's graph, and by the trial."""
        found = divergence("y", self.run(self.model), self.run(self.quantizer.quantized(in_float)))
        (tried,) = self.trial.tried([node for node in self.trial.nodes if node not in in_float])
        return found.decibels, tried.decibels


@pytest.mark.parametrize(
    "in_float", [(), ("conv_b",), ("conv_a", "mul_half"), ("conv_a", "conv_b", "conv_c")]
)
def test_the_trial_is_as_far_off_as_the_quantizers_graph(tmp_path: Path, in_float: tuple[str, ...]) -> None:
    found, tried = Both(tmp_path, hostile=False).decibels(in_float)
    assert tried == pytest.approx(found, abs=0.5)


def test_a_graph_with_nothing_quantized_is_the_float_graph(tmp_path: Path) -> None:
    both = Both(tmp_path, hostile=False)
    assert both.trial.nodes == ("conv_a", "conv_b", "conv_c", "mul_half", "conv_d")
    (off,) = both.trial.tried(())
    assert (off.decibels, off.cost) == (100, 0)


def test_the_noisiest_come_first_and_the_fewest_stay(tmp_path: Path) -> None:
    trial = Both(tmp_path, hostile=True).trial
    ranked = noisiest(trial)
    assert {*ranked[:2]} == {"mul_up", "mul_down"} and {*ranked} == {*trial.nodes}
    count = fewest_in_float(trial, ranked)
    assert max(each.cost for each in trial.tried(ranked[count:])) <= 1
    assert max(each.cost for each in trial.tried(ranked[count - 1 :])) > 1
