"""What one run measured, as JSON beside its bundle: all that the reports are made of.

Figures are of the test split, code tables of the validation split, unless a field says otherwise.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from offramp.common.bundle.manifest import DatasetEntry
from offramp.common.errors import DataError, printable
from offramp.common.files import read_bounded

if TYPE_CHECKING:
    # It imports torch, which reading records needs not.
    from offramp.training.models.split_model import SplitModel

RECORD = "measured.json"
_BYTES = 1 << 26

RAW = "raw"
ONE_TABLE = "Huffman, one table"
TABLE_A_CHANNEL = "Huffman, a table a channel"
SHARED_TABLES = "Huffman, shared tables"
RANS = "rANS"
SHIPPED = "shipped"
"""Names of the ways to code an activation."""
CODECS = (RAW, ONE_TABLE, TABLE_A_CHANNEL, SHARED_TABLES, RANS, SHIPPED)
"""Those that a run measures, in this order; the last is what the bundle ships."""
CSR, LZ4, ZSTD = "CSR", "LZ4", "zstd 3"
"""Those that older records have as well, and that a report may add."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Accuracy(_Strict):
    """Top-1 accuracy of both exits over all images, of the INT8 graphs and of the float32 model."""

    early: float
    final: float
    early_float: float
    final_float: float


class Curve(_Strict):
    """Figures by confidence threshold T_c; every list is as long as ``threshold``."""

    threshold: list[float]
    exit_rate: list[float]
    accuracy: list[float]
    exit_rate_float: list[float]
    accuracy_float: list[float]
    bytes: dict[str, list[float]]
    """Mean payload over all images by codec, where measured; an image that exits early sends 0 bytes."""


class StageEpoch(_Strict):
    """One epoch: figures are of the validation split."""

    stage: str
    number: int
    epochs: int
    loss: float
    figures: dict[str, float]
    best: bool


class Machine(_Strict):
    """Where it was trained."""

    device: str
    precision: Literal["float32", "bfloat16", "float16"]
    libraries: dict[str, str]


class Cost(_Strict):
    """What the two sides hold and compute for one image, as Table II counts it."""

    device_weights: int
    device_macs: int
    server_weights: int
    server_macs: int
    activations: int
    """Numbers in the device's two largest neighbouring tensors, which it holds at once."""


class Record(_Strict):
    """One run."""

    name: str
    digest: str
    """Of the bundle, hexadecimal."""
    commit: str
    backbone: str
    exit: int
    layer: str
    shape: tuple[int, int, int]
    entropy_weight: float
    """Lambda_e of Eq. (3)."""
    sparsity_weight: float
    """Lambda_s of Eq. (6)."""
    rate_weight: float = 0.0
    """Loss of one KB of estimated payload, where a bottleneck is trained."""
    divergence: float = 0.0
    """How far the step of the transmitted activation may move an exit's answers, mean nats; 0: not at all."""
    step: float = 1.0
    """That step, as a multiple of the finest one that holds the range."""
    bottleneck: str = ""
    """Its channels and stride, as 8x2; empty: the activation itself is sent."""
    epochs: dict[str, int]
    """By stage."""
    images: dict[str, int] = {}
    """By stage: how many images an epoch draws; a stage that is not there draws all."""
    sides: list[int] = []
    """Of the images in the first epochs of the base stage, where they were smaller than the data's."""
    batch_size: int
    seed: int
    dataset: DatasetEntry
    machine: Machine
    cost: Cost
    accuracy: Accuracy
    bytes: dict[str, float]
    """Mean payload of one activation by codec, where it was measured; every image offloaded."""
    entropy_bits: float
    entropy_bits_channel: float
    """Bits a symbol, one distribution for the tensor or for each channel."""
    zeros: float
    """Share of symbols that stand for the real number 0."""
    ece: float
    """Expected calibration error of the early exit's confidence."""
    threshold: float
    """The bundle's T_c, chosen on the validation split."""
    curve: Curve
    history: list[StageEpoch]
    entropy_steps: list[tuple[int, float]]
    """(step of the regularised stage, bits per activation sample in its batch of training images)."""

    @property
    def raw_bytes(self) -> int:
        """C·H·W: one activation at one byte a symbol."""
        channels, height, width = self.shape
        return channels * height * width


def measure_cost(model: SplitModel) -> Cost:
    """The cost of a split model."""
    import torch

    from offramp.training.models.cost import partition
    from offramp.training.models.layers import Flow

    sides = partition(model)
    training = model.training
    flow = Flow(torch.zeros(1, *model.backbone.input_shape))
    sizes = [flow.x.numel()]
    model.eval()
    with torch.no_grad():
        for block in model.blocks()[: model.cut]:
            flow = block(flow)
            sizes.append(flow.x.numel() + (0 if flow.skip is None else flow.skip.numel()))
    model.train(training)
    return Cost(
        device_weights=sides.device.weights,
        device_macs=sides.device.macs,
        server_weights=sides.server.weights,
        server_macs=sides.server.macs,
        activations=max(a + b for a, b in pairwise(sizes)),
    )


def read_record(path: Path) -> Record:
    """The record in a file. Raises DataError naming the first field that is wrong."""
    try:
        text = read_bounded(path, _BYTES, error=DataError, expected="a record of `offramp train`")
        return Record.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise DataError(f"{path}: {where}: {printable(first['msg'])}") from None


def record_paths(folder: Path) -> list[Path]:
    """Every record in the bundles of a folder, ordered by name. Raises DataError if there is none."""
    found = sorted(folder.glob(f"*/{RECORD}")) + sorted(folder.glob(RECORD))
    if not found:
        raise DataError(f"{folder}: no {RECORD} in it, expected bundles written by `offramp train`")
    return found


def read_records(folder: Path) -> list[Record]:
    """What is in them."""
    return [read_record(path) for path in record_paths(folder)]
