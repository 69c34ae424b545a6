"""What the paper prints, as data: the figures that ours stand beside.

Beysens, Sénéclauze, Dallemagne, Bigdeli: Early Exiting with Compressible Activations for Efficient Neural
Network Inference. KB are 1,024 bytes, accuracies and shares per cent.
"""

from __future__ import annotations

from dataclasses import dataclass

INPUT_BYTES = 3 * 32 * 32
"""One CIFAR image at one byte a sample."""


@dataclass(frozen=True)
class Partition:
    """A row of Table II: weights in KB of FP32, operations in 10^6 MAC."""

    device_kb: float
    branch_kb: float
    device_macs: float
    branch_macs: float
    server_kb: float
    server_macs: float


TABLE_II = {
    2: Partition(147.1, 140.6, 1.7, 0.04, 8597.3, 86.3),
    5: Partition(235.8, 210.9, 6.6, 0.05, 8578.9, 81.5),
    8: Partition(268.9, 210.9, 15.0, 0.05, 8546.8, 73.1),
    12: Partition(154.8, 61.3, 20.0, 0.02, 8510.3, 68.0),
    15: Partition(209.5, 61.3, 23.6, 0.02, 8455.5, 64.4),
}
"""By exit."""


@dataclass(frozen=True)
class Regularised:
    """A row of Tables III to V: activation size in KB, accuracy of the INT8 model."""

    raw: float
    csr: float
    huffman: float
    early: float
    final: float


TABLE_III = {
    0.0: Regularised(24.0, 66.5, 14.5, 74.8, 91.2),
    0.5: Regularised(24.0, 60.4, 11.4, 74.6, 90.6),
    1.0: Regularised(24.0, 31.3, 8.1, 71.5, 89.6),
    2.5: Regularised(24.0, 68.8, 5.8, 66.2, 88.8),
    5.0: Regularised(24.0, 70.9, 5.6, 61.7, 89.3),
    10.0: Regularised(24.0, 72.0, 6.3, 10.0, 10.0),
}
"""Exit 5, by lambda_e."""

TABLE_IV = {
    0.0: Regularised(8.0, 22.5, 4.8, 80.2, 90.8),
    0.5: Regularised(8.0, 19.4, 3.7, 80.8, 90.7),
    1.0: Regularised(8.0, 9.4, 2.5, 78.3, 89.5),
    2.5: Regularised(8.0, 3.6, 1.5, 64.7, 62.8),
    5.0: Regularised(8.0, 0.1, 1.0, 16.0, 10.0),
}
"""Exit 12, by lambda_e."""

TABLE_V = {
    0.0: Regularised(96.0, 64.7, 19.3, 75.4, 90.4),
    1e-5: Regularised(96.0, 50.8, 17.1, 75.3, 90.7),
    1e-4: Regularised(96.0, 17.6, 13.7, 73.2, 89.2),
    1e-3: Regularised(96.0, 3.6, 12.3, 66.1, 58.6),
    1e-2: Regularised(96.0, 0.1, 12.0, 28.9, 14.3),
}
"""Exit 4, by lambda_s."""

FIG_1_TIMES_INPUT = {"mobilenet-v2": 48.0}
"""Largest INT8 activation over the input's bytes."""
FIG_1_OURS_KB = 2.5
FIG_6_EARLY_ACCURACY = {2: 68.7, 15: 84.9}
"""At T_c = 0, by exit."""
FIG_7_KB = {1.0: 32.0, 0.9: 9.6}
"""Raw FP32 cost by T_c; an activation of 32 KB is that of exits 12 and 15."""
FIG_8_START_BITS = 7.3
FIG_8_END_BITS = {1.0: 4.9}
FIG_9_EARLY_DROP = {1.0: 1.9}
"""Points of accuracy at T_c = 0, by lambda_e."""
FIG_10_FLOOR = 85.0
FIG_10_KB = {"raw, λ_e = 0": 6.5, "Huffman, λ_e = 0": 3.9, "Huffman, λ_e = 0.5": 3.0}
FIG_10_SAVED = 54.0
QUANTIZATION_DROP = {"early": 0.70, "final": 0.34}
"""Points, mean over the weights of Table III."""


@dataclass(frozen=True)
class Other:
    """A network that Sec. V-C treats in its text: bits and accuracy without and with lambda_e = 1."""

    bits: tuple[float, float]
    accuracy: tuple[float, float]


OTHERS = {
    "resnet-32": Other((6.8, 1.1), (87.6, 86.8)),
    "vgg-19": Other((2.6, 0.6), (88.1, 85.0)),
}
