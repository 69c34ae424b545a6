"""The rate-trained split: its density, its place in a model, its training, and its graphs."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from offramp.common.errors import ConfigError
from offramp.training.data.datasets import Dataset, to_float
from offramp.training.export import export
from offramp.training.loop import train
from offramp.training.models.bottleneck import (
    ZERO_POINT,
    Bottleneck,
    BottleneckShape,
    Context,
    Density,
    Rounding,
)
from offramp.training.models.cost import partition
from offramp.training.models.mobilenet import mobilenet_v2
from offramp.training.models.networks import BACKBONES
from offramp.training.models.split_model import Outputs, SplitModel
from offramp.training.quantize.quantize import quantize
from offramp.training.quantize.quantized import WHOLE
from offramp.training.recipe import Recipe
from offramp.training.stages.rate import RateTask
from tests.kill import before_the_checkpoint, killed_and_resumed
from tests.training.coded import CODE, with_code


def narrowed(text: str, rate: float, density: str = "channel") -> Recipe:
    return with_code(text, f'density = "{density}"\n', rate=rate)


def test_the_density_of_a_channel_sums_to_one_over_all_symbols() -> None:
    torch.manual_seed(0)
    density = Density((5, 1, 1))
    with torch.no_grad():
        for parameter in density.parameters():
            parameter.add_(torch.randn_like(parameter))
        symbols = torch.arange(-4000.0, 4001.0)
        planes = [s.expand(1, 5, 1, 1) for s in symbols]
        bits = torch.stack([density.bits(plane, plane, learn=False) for plane in planes], dim=1)
    # Each of the symbols that are as good as impossible is charged 24 bits.
    assert (2.0**-bits).sum(dim=1).numpy() == pytest.approx(np.ones(5), abs=8001 * 2.0**-24 + 1e-4)


def test_the_estimate_is_the_cross_entropy_of_the_symbols() -> None:
    """Fitted to symbols of known distribution, the density charges their entropy."""
    torch.manual_seed(1)
    shares = torch.tensor([0.05, 0.15, 0.6, 0.15, 0.05])
    drawn = torch.multinomial(shares, 16 * 64, replacement=True).view(16, 1, 8, 8).float() - 2
    density = Density((1, 8, 8))
    optimizer = torch.optim.Adam(density.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        bits = density.bits(drawn, drawn, learn=True).sum()
        bits.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    seen = torch.bincount((drawn + 2).long().flatten()) / drawn.numel()
    entropy = float(-(seen * seen.log2()).sum()) * 64
    assert entropy <= bits.item() < 1.02 * entropy


@pytest.mark.parametrize("channel", range(3))
def test_a_context_is_only_what_is_coded_before(channel: int) -> None:
    """A symbol changes the distribution of those that `common.context` tells from it, and of no other."""
    torch.manual_seed(4)
    context = Context((3, 4, 5))
    with torch.no_grad():
        context.weight.add_(torch.rand_like(context.weight) + 0.1)
        symbols = torch.zeros(1, 3, 4, 5)
        before = torch.cat(context(symbols, learn=True))
        symbols[0, channel, 1, 2] = 1
        changed = torch.cat(context(symbols, learn=True)) != before
    wanted = torch.zeros(2, 3, 4, 5, dtype=torch.bool)
    wanted[:, channel + 1 :, 1, 2] = True
    for row, column in ((1, 3), (2, 1), (2, 2), (2, 3)):
        wanted[:, :, row, column] = True
    assert torch.equal(changed, wanted)


def test_a_context_tells_a_symbol_from_its_neighbours() -> None:
    """Each symbol is the one at its left or one more, so it costs a bit; without a context it costs more."""
    torch.manual_seed(5)
    steps = torch.randint(2, (2, 64, 2, 4, 3)).float()
    # Half to learn from, half to measure by: what was learned by heart costs less than it can elsewhere.
    seen, fresh = torch.cat([torch.zeros(2, 64, 2, 4, 1), steps], dim=4).cumsum(dim=4) - 1
    bits = {}
    for context in (False, True):
        density = Density((2, 4, 4), context=context)
        optimizer = torch.optim.Adam(density.parameters(), lr=0.05)
        for _ in range(400):
            optimizer.zero_grad()
            density.bits(seen, seen, learn=True).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        bits[context] = density.bits(fresh, fresh, learn=False).sum().item()
    assert steps[0, 0].numel() * 0.98 <= bits[True] < 0.85 * bits[False]


@pytest.mark.parametrize("context", [False, True])
def test_each_of_the_two_estimates_moves_only_what_it_is_for(context: bool) -> None:
    torch.manual_seed(2)
    narrow = Bottleneck((8, 8, 8), BottleneckShape(3, 2, 16), context=context).train()
    code = torch.randn(2, 3, 4, 4, requires_grad=True)
    rate, fit = narrow.bits(code)
    rate.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    assert code.grad is not None and code.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in narrow.density.parameters())
    code.grad = None
    fit.backward()  # type: ignore[no-untyped-call]
    assert code.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in narrow.density.parameters())


def test_rounding_keeps_to_what_a_byte_holds_and_to_the_gradient_inside() -> None:
    x = torch.tensor([-500.0, -0.6, 0.4, 3.5, 500.0], requires_grad=True)
    rounded = Rounding()(x)
    assert rounded.tolist() == [-ZERO_POINT, -1, 0, 4, 255 - ZERO_POINT]
    rounded.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("channels", "stride", "growth", "shape"),
    [
        (8, 2, 1, (8, 8, 8)),
        (16, 4, 1, (16, 4, 4)),
        (16, 4, 2, (16, 4, 4)),
        (2, 1, 2, (2, 16, 16)),
        (4, 8, 2, (4, 2, 2)),
    ],
)
def test_the_code_travels_in_place_of_the_activation(
    channels: int, stride: int, growth: int, shape: tuple[int, ...]
) -> None:
    model = SplitModel(mobilenet_v2(10), 12)
    before = partition(model)
    narrow = Bottleneck(model.exit_shape, BottleneckShape(channels, stride, 32, growth))
    halvings = stride.bit_length() - 1
    assert narrow.hidden_shape == (32 * growth ** max(0, halvings - 1), *shape[1:])
    model.insert(narrow)
    assert model.split_shape == shape
    out = model.eval()(torch.randn(2, 3, 32, 32))
    assert out.activation.shape == (2, *shape)
    assert out.final.shape == out.early.shape == (2, 10)
    after = partition(model)
    assert after.branch == before.branch
    assert model.bottleneck is not None
    encoder, decoder = (
        sum(m.weight.numel() for block in part for m in block.modules() if isinstance(m, torch.nn.Conv2d))
        for part in model.bottleneck.blocks()
    )
    assert after.device.weights - before.device.weights == encoder
    assert after.server.weights - before.server.weights == decoder


def test_a_stride_that_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="a stride of 8 does not divide a 12x12 activation"):
        Bottleneck((4, 12, 12), BottleneckShape(4, 8, 8))


def test_what_does_not_fit_is_known_before_training(recipe_text: str, small: Dataset, tmp_path: Path) -> None:
    recipe = Recipe.parse(recipe_text.replace("entropy = 1.0", "rate = 1.0") + CODE)
    with pytest.raises(ConfigError, match="exit 3 is inside a residual block"):
        train(recipe, small, tmp_path)
    assert not list(tmp_path.glob("*.pt"))


@pytest.mark.parametrize("density", ["channel", "context"])
def test_a_higher_rate_sends_fewer_bits(
    recipe_text: str, small: Dataset, tmp_path: Path, density: str
) -> None:
    # A context has many weights to learn before it is worth anything.
    epochs = {"channel": 1, "context": 3}[density]
    at = recipe_text.index("[train.regularised]")
    text = recipe_text[:at] + recipe_text[at:].replace("epochs = 1", f"epochs = {epochs}")
    bits = {}
    for rate in (0.0, 300.0):
        trained = train(narrowed(text, rate, density), small, tmp_path, resume=True)
        last = trained.epochs[-1].figures
        bits[rate] = last["entropy_bits"]
        assert trained.model.bottleneck is not None
        done = ["base", "base", "exit", *["regularised"] * epochs]
        assert [epoch.stage for epoch in trained.epochs] == done
    assert 0 < bits[300.0] < 0.9 * bits[0.0]
    # Base and exit are the same for both, so their checkpoints are shared.
    assert len(list(tmp_path.glob("*.pt"))) == 4


def test_a_checkpoint_of_another_releases_bottleneck(
    recipe_text: str, small: Dataset, tmp_path: Path
) -> None:
    recipe = narrowed(recipe_text, 1.0)
    train(recipe, small, tmp_path)
    (path,) = tmp_path.glob("regularised-*.pt")
    state = torch.load(path, weights_only=True)
    name = next(name for name in state["best"] if "decoder" in name and name.endswith("conv.weight"))
    state["best"][name] = state["best"][name][:1]
    torch.save(state, path)
    with pytest.raises(ConfigError, match=f"checkpoint {path} is of another release: remove it"):
        train(recipe, small, tmp_path, resume=True)


def stages(recipe: Recipe, data: Dataset, checkpoints: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Each stage's best model, by stage and the parameter's name."""
    train(recipe, data, checkpoints)
    return {
        path.name.split("-")[0]: {
            name.removeprefix("model."): value
            for name, value in torch.load(path, weights_only=True)["best"].items()
        }
        for path in checkpoints.glob("*.pt")
    }


@pytest.mark.parametrize(("head", "tail"), [(0.0, 0.5), (0.5, 0.5), (0.0, 0.0)])
def test_only_what_has_a_share_of_the_learning_rate_learns(
    recipe_text: str, small: Dataset, tmp_path: Path, head: float, tail: float
) -> None:
    text = recipe_text + "[train.code]\nepochs = 1\nlearning_rate = 0.002\n"
    text = text.replace("entropy = 1.0", f"entropy = 1.0\nhead = {head}\ntail = {tail}")
    found = stages(narrowed(text, 1.0), small, tmp_path)

    def moved(before: str, after: str, *names: str) -> bool:
        shared = [name for name in found[before] if name.startswith(names)]
        assert shared
        return any(not torch.equal(found[before][name], found[after][name]) for name in shared)

    # Of the tiny backbone, exit 5: blocks 0 … 5 are on the device.
    device, server = ("backbone.blocks.0.", "backbone.blocks.5."), ("backbone.blocks.6.", "backbone.top.")
    assert not moved("exit", "code", *device, *server)
    assert moved("code", "regularised", *device) == (head > 0)
    assert moved("code", "regularised", *server) == (tail > 0)
    assert moved("code", "regularised", "bottleneck.encoder.", "bottleneck.density.", "branch.")


def test_an_early_exit_before_the_encoder_learns_with_the_head(
    recipe_text: str, small: Dataset, tmp_path: Path
) -> None:
    recipe = Recipe.parse(
        recipe_text.replace("entropy = 1.0", "head = 0.0").replace("exit = 3", "exit = 5")
        + CODE
        + "exit_behind = false\n"
    )
    found = stages(recipe, small, tmp_path)
    for name in ("branch.linear.weight", "branch.linear.bias"):
        assert torch.equal(found["exit"][name], found["regularised"][name])


def test_an_early_exit_behind_the_encoder_sees_its_last_layer_but_one() -> None:
    model = SplitModel(mobilenet_v2(10), 12)
    before = partition(model)
    model.insert(Bottleneck(model.exit_shape, BottleneckShape(16, 4, 32)), exit_behind=True)
    # 32 channels of 4x4, of which the pool leaves 2x2: each of the 16 places counts.
    assert model.branch.linear.weight.shape == (10, 32 * 2 * 2)
    assert model.blocks()[model.seen].name == "encoder2"
    with torch.no_grad():
        code, early = model.eval().encode(model.activation(torch.randn(2, 3, 32, 32)))
    assert code.shape == (2, 16, 4, 4) and early.shape == (2, 10)
    assert partition(model).branch.weights == 1280 < before.branch.weights


def test_an_early_exit_that_does_not_fit_behind_the_encoder(
    recipe_text: str, small: Dataset, tmp_path: Path
) -> None:
    text = CODE.replace("stride = 2", "stride = 8")
    recipe = Recipe.parse(
        recipe_text.replace("entropy = 1.0", "rate = 1.0").replace("exit = 3", "exit = 7") + text
    )
    with pytest.raises(ConfigError, match="no early exit fits a 1x1 activation"):
        train(recipe, small, tmp_path)
    assert not list(tmp_path.glob("*.pt"))


def test_the_code_alone_learns_to_hand_on_the_activation(
    recipe_text: str, small: Dataset, tmp_path: Path
) -> None:
    text = recipe_text + "[train.code]\nepochs = 12\nlearning_rate = 0.005\n"
    trained = train(narrowed(text, 1.0), small, tmp_path)
    figures = {epoch.number: epoch.figures for epoch in trained.epochs if epoch.stage == "code"}
    assert figures[12]["error"] < 0.7 * figures[1]["error"]
    assert figures[12]["error"] < 0.5


def test_what_has_to_come_out_right_lies_behind_the_split(
    recipe_text: str, small: Dataset, tmp_path: Path
) -> None:
    text = recipe_text + "[train.code]\nepochs = 1\nlearning_rate = 0.005\nat = {at}\n"
    errors = {}
    for at in (5, 7):
        trained = train(narrowed(text.format(at=at), 1.0), small, tmp_path / str(at))
        (errors[at],) = [epoch.figures["error"] for epoch in trained.epochs if epoch.stage == "code"]
    assert errors[5] != errors[7]
    for at in (4, 8):
        with pytest.raises(ConfigError, match=rf"train\.code\.at: expected 5 \(the exit\) … 7, got {at}"):
            train(narrowed(text.format(at=at), 1.0), small, tmp_path / "none")


@pytest.mark.parametrize("killed", ["exit", "code"])
def test_a_killed_and_resumed_run_ends_with_the_same_bits(
    recipe_text: str, small: Dataset, tmp_path: Path, killed: str
) -> None:
    text = recipe_text + "[train.code]\nepochs = 1\nlearning_rate = 0.002\n"
    recipe = narrowed(text, 1.0)
    whole = train(recipe, small, tmp_path / "whole")

    resumed, _ = killed_and_resumed(recipe, small, tmp_path / "broken", before_the_checkpoint(killed))
    again = train(recipe, small, tmp_path / "broken", resume=True)
    for other in (resumed, again):
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, other.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("backbone", "exit_number", "stride", "growth", "exit_behind"),
    [("tiny", 1, 2, 1, False), ("tiny", 5, 4, 2, True), ("mobilenet-v2", 12, 2, 1, True)],
)
def test_the_graphs_send_the_models_own_symbols(
    backbone: str, exit_number: int, stride: int, growth: int, exit_behind: bool
) -> None:
    torch.manual_seed(exit_number)
    model = SplitModel(BACKBONES[backbone](10, 32), exit_number)
    narrow = Bottleneck(model.exit_shape, BottleneckShape(8, stride, 16, growth))
    model.insert(narrow, exit_behind=exit_behind)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 3, 8, 8), dtype=np.uint8)
    pixels = pixels.repeat(4, axis=2).repeat(4, axis=3)
    images = to_float(torch.from_numpy(pixels))
    with torch.no_grad():
        for _ in range(10):
            model.train()(images)
        out = model.eval()(images)
    quantized = quantize(model, images)
    assert quantized.symbols == WHOLE
    graphs = export(quantized)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    head, tail = (
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        for graph in (graphs.head, graphs.tail)
    )
    symbols, early = head.run(["symbols", "logits"], {"image": pixels})
    assert symbols.shape == (16, *model.split_shape)
    (final,) = tail.run(["logits"], {"symbols": symbols})
    assert model.bottleneck is not None
    wanted = model.bottleneck.rounding(out.activation).numpy() + ZERO_POINT
    # Rounded to a whole number, what 8-bit layers add moves some symbols by one.
    apart = np.abs(symbols.astype(int) - wanted)
    assert apart.mean() < 0.12
    for found, reference in ((early, out.early.numpy()), (final, out.final.numpy())):
        assert np.abs(found - reference).mean() / reference.std() < 0.2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "entropy = 1.0",
            "rate = 1.0",
            "train.regularised.rate is the price of a code: needs model.bottleneck",
        ),
        ("entropy = 1.0", "entropy = 1.0\n" + CODE, "model.bottleneck takes train.regularised.rate"),
        (
            "epochs = 1\nlearning_rate = 0.05\nentropy = 1.0",
            f"epochs = 0\nlearning_rate = 1\n{CODE}",
            "epochs is 0",
        ),
        ("entropy = 1.0", CODE.replace("stride = 2", "stride = 3"), "model.bottleneck.stride"),
    ],
)
def test_recipes_that_make_no_sense(recipe_text: str, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe.parse(recipe_text.replace(old, new))


@pytest.mark.parametrize("exit", ["early", "final"])
def test_each_exit_learns_from_the_unsplit_model_by_its_own_share(exit: str, recipe_text: str) -> None:
    """An exit that has all of its loss from a teacher with the same answers has none."""
    own = "distill_early" if exit == "early" else "distill"
    text = recipe_text.replace("entropy = 1.0", f"rate = 1.0\n{own} = 1.0").replace("exit = 3", "exit = 5")
    recipe = Recipe.parse(text + CODE)
    torch.manual_seed(0)
    teacher = BACKBONES["tiny"](10, 32)
    model = SplitModel(teacher, 5)
    model.insert(Bottleneck(model.exit_shape, BottleneckShape(4, 2, 16)), exit_behind=True)
    task = RateTask(model, recipe.train.rho, recipe.train.regularised, teacher)
    labels = torch.arange(4)
    taught, other = torch.randn(2, 4, 10)
    cross = torch.nn.functional.cross_entropy(other, labels)
    answers = (taught, other) if exit == "early" else (other, taught)
    early, final = recipe.train.rho or [0.5, 0.5]
    wanted = cross * (final if exit == "early" else early)
    torch.testing.assert_close(task.answers(Outputs(*answers, other), labels, taught), wanted)
