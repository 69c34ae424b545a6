"""Reports that need no training: Table II, Figures 1 and 5 follow from the networks alone."""

from __future__ import annotations

import torch

from offramp.bench.plots import Plot, Series
from offramp.bench.report_tables import Column, ReportTable, Value
from offramp.training.models.backbone import Backbone
from offramp.training.models.cost import partition
from offramp.training.models.layers import Flow
from offramp.training.models.networks import BACKBONES
from offramp.training.models.split_model import SplitModel
from offramp.training.record import SHIPPED, Record
from research.paper import paper

_CLASSES, _SIZE = 10, 32
_KB = 1024
_NAMES = {"mobilenet-v2": "MobileNetV2", "resnet-32": "ResNet-32", "vgg-19": "VGG-19"}


def _build(name: str) -> Backbone:
    return BACKBONES[name](_CLASSES, _SIZE).eval()


def table2() -> ReportTable:
    """Weights and operations on both sides of each split (Table II)."""
    backbone = _build("mobilenet-v2")
    rows: list[dict[str, Value]] = []
    for number, printed in paper.TABLE_II.items():
        sides = partition(SplitModel(backbone, number))
        rows.append(
            {
                "exit": number,
                "device_kb": sides.device.weights * 4 / _KB,
                "device_kb_paper": printed.device_kb,
                "branch_kb": sides.branch.weights * 4 / _KB,
                "branch_kb_paper": printed.branch_kb,
                "device_macs": sides.device.macs / 1e6,
                "device_macs_paper": printed.device_macs,
                "branch_macs": sides.branch.macs / 1e6,
                "branch_macs_paper": printed.branch_macs,
                "server_kb": sides.server.weights * 4 / _KB,
                "server_kb_paper": printed.server_kb,
                "server_macs": sides.server.macs / 1e6,
                "server_macs_paper": printed.server_macs,
            }
        )
    columns = [Column("exit", "exit")]
    for key, title, digits in (
        ("device_kb", "device KB", 1),
        ("branch_kb", "of it branch KB", 1),
        ("device_macs", "device M MAC", 1),
        ("branch_macs", "of it branch M MAC", 2),
        ("server_kb", "server KB", 1),
        ("server_macs", "server M MAC", 1),
    ):
        columns += [Column(key, title, digits), Column(f"{key}_paper", "paper", digits)]
    exits = [f"exit {row['exit']}" for row in rows]
    return ReportTable(
        "table2",
        "Table II: weights (FP32) and operations on both sides, MobileNetV2",
        columns,
        rows,
        Plot(
            "Table II: weights on the device",
            "",
            "KB",
            [
                Series("ours", exits, [float(row["device_kb"] or 0) for row in rows]),
                Series("paper", exits, [one.device_kb for one in paper.TABLE_II.values()], paper=True),
            ],
            kind="bars",
        ),
        [
            "Convolution and linear weights without biases or batch norm, 4 bytes each; KB are 1,024 B.",
            "Exit 8: the paper prints 268.9 KB on the device. Its own row says 267.9: the model has 8,603.75"
            " KB, of which 8,546.8 are the server's, and the branch adds 210.9.",
        ],
    )


def fig1(records: list[Record]) -> ReportTable:
    """Largest activation of each network (Fig. 1), and our bytes of the entropy-trained exit 12."""
    rows: list[dict[str, Value]] = []
    for name in _NAMES:
        sizes = [(size, block) for block, _, size in _activations(_build(name))]
        largest, block = max(sizes, key=lambda one: one[0])
        rows.append(
            {
                "network": _NAMES[name],
                "layer": block,
                "kb": largest / _KB,
                "times": largest / paper.INPUT_BYTES,
                "times_paper": paper.FIG_1_TIMES_INPUT.get(name),
            }
        )
    for record in records:
        if (record.backbone, record.exit, record.entropy_weight) == ("mobilenet-v2", 12, 1.0):
            size = record.bytes[SHIPPED]
            rows.append(
                {
                    "network": "MobileNetV2, exit 12, λ_e = 1, coded"
                    + (f", step {record.step:.0f}" if record.divergence else ""),
                    "layer": record.layer,
                    "kb": size / _KB,
                    "times": size / paper.INPUT_BYTES,
                    "times_paper": paper.FIG_1_OURS_KB * _KB / paper.INPUT_BYTES,
                }
            )
    networks = [str(row["network"]) for row in rows]
    return ReportTable(
        "fig1",
        "Figure 1: largest INT8 activation on a 32×32 picture",
        [
            Column("network", "network"),
            Column("layer", "layer"),
            Column("kb", "KB"),
            Column("times", "times the input"),
            Column("times_paper", "paper"),
        ],
        rows,
        Plot(
            "Figure 1: largest activation, INT8",
            "",
            "KB",
            [Series("activation", networks, [float(row["kb"] or 0) for row in rows])],
            kind="bars",
        ),
        ["The input has 3,072 B. The paper prints numbers for MobileNetV2 and for its own result only."],
    )


def fig5() -> ReportTable:
    """Activation size at every exit of MobileNetV2 (Fig. 5)."""
    backbone = _build("mobilenet-v2")
    rows: list[dict[str, Value]] = []
    for number, (block, travels, size) in enumerate(_activations(backbone)):
        if number:
            rows.append(
                {
                    "exit": number,
                    "layer": block,
                    "fp32_kb": size * 4 / _KB,
                    "int8_kb": size / _KB,
                    "travels_kb": travels / _KB,
                }
            )
    exits = [str(row["exit"]) for row in rows]
    return ReportTable(
        "fig5",
        "Figure 5: activation size at every exit, MobileNetV2",
        [
            Column("exit", "exit"),
            Column("layer", "layer"),
            Column("fp32_kb", "FP32 KB"),
            Column("int8_kb", "INT8 KB"),
            Column("travels_kb", "INT8 KB sent"),
        ],
        rows,
        Plot(
            "Figure 5: activation size, FP32",
            "exit",
            "KB",
            [Series("activation", exits, [float(row["fp32_kb"] or 0) for row in rows])],
            kind="bars",
        ),
        [
            "Inside a residual block the block's input is sent too (Sec. III-A), as at exits 8 and 15. "
            "The paper's Table III has 24 KB at exit 5, Table V 96 KB at exit 4, Table IV 8 KB at exit 12."
        ],
    )


@torch.no_grad()
def _activations(backbone: Backbone) -> list[tuple[str, int, int]]:
    """For each position: its name, symbols that are sent if it is cut there, symbols of the activation."""
    flow = Flow(torch.zeros(1, *backbone.input_shape))
    found = []
    for block in backbone.positions():
        flow = block(flow)
        skip = 0 if flow.skip is None else flow.skip.numel()
        found.append((block.name, flow.x.numel() + skip, flow.x.numel()))
    return found
