"""Records of runs that nobody trained, with figures that are easy to check."""

from typing import Any

from offramp.training.record import CODECS, ONE_TABLE, RAW, Record
from research.codecs.peers import CSR, PEERS

GRID = [0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0]


def record(
    exit_number: int = 5,
    *,
    entropy: float = 0.0,
    sparsity: float = 0.0,
    shape: tuple[int, int, int] = (24, 32, 32),
    huffman: float | None = None,
    early: float = 0.70,
    final: float = 0.90,
    backbone: str = "mobilenet-v2",
    regularised: int = 10,
    step: float = 1.0,
) -> Record:
    """One run: its exit rate falls evenly with T_c, its accuracy rises evenly from early to final."""
    raw = shape[0] * shape[1] * shape[2]
    sizes = dict.fromkeys((*CODECS, *PEERS), raw / 2)
    sizes |= {RAW: raw, CSR: raw * 2.5, ONE_TABLE: raw / 2 if huffman is None else huffman}
    accuracy = [early + (final - early) * at for at in GRID]
    values: dict[str, Any] = {
        "name": f"{backbone}-exit{exit_number}-e{entropy:g}-s{sparsity:g}-{regularised}-{step:g}",
        "digest": "00" * 32,
        "commit": "unknown",
        "backbone": backbone,
        "exit": exit_number,
        "layer": "block2.C3",
        "shape": shape,
        "entropy_weight": entropy,
        "sparsity_weight": sparsity,
        "divergence": 0.01 if step != 1 else 0.0,
        "step": step,
        "epochs": {"base": 300, "exit": 50, "regularised": regularised},
        "batch_size": 256,
        "seed": 1,
        "dataset": {"name": "made-up", "sha256": "0" * 64, "train": 900, "validation": 100, "test": 50},
        "machine": {"device": "some machine", "precision": "float32", "libraries": {"torch": "2"}},
        "cost": {
            "device_weights": 50_000 * exit_number,
            "device_macs": 2_000_000 * exit_number,
            "server_weights": 2_000_000,
            "server_macs": 80_000_000,
            "activations": 200_000,
        },
        "accuracy": {
            "early": early,
            "final": final,
            "early_float": early + 0.005,
            "final_float": final + 0.003,
        },
        "bytes": sizes,
        "entropy_bits": 5.0,
        "entropy_bits_channel": 4.0,
        "zeros": 0.08,
        "ece": 0.02,
        "threshold": 0.9,
        "curve": {
            "threshold": GRID,
            "exit_rate": [1 - at for at in GRID],
            "accuracy": accuracy,
            "exit_rate_float": [1 - at for at in GRID],
            "accuracy_float": accuracy,
            "bytes": {name: [size * at for at in GRID] for name, size in sizes.items()},
        },
        "history": [
            {
                "stage": stage,
                "number": 1,
                "epochs": 1,
                "loss": 1.0,
                "figures": figures,
                "best": True,
            }
            for stage, figures in (
                ("base", {"final": 0.93}),
                ("exit", {"early": early, "final": final, "entropy_bits": 7.0}),
                ("regularised", {"early": early, "final": final, "entropy_bits": 7.0 - entropy}),
            )
        ],
        "entropy_steps": [[0, 7.25], [100, 7.25 - entropy]],
    }
    return Record.model_validate(values)


def paper_like() -> list[Record]:
    """The runs that every report needs."""
    five = [
        record(5, entropy=w, huffman=h) for w, h in ((0.0, 14_848), (0.5, 11_674), (1.0, 8_294), (2.0, 7e3))
    ]
    shape = (32, 16, 16)
    twelve = [record(12, entropy=w, shape=shape, final=0.9 - w / 100) for w in (0.0, 1.0)]
    four = (96, 32, 32)
    sparse = [record(4, sparsity=w, shape=four) for w in (0.0, 1e-5, 1e-2)]
    exits = [record(n, shape=shape, regularised=0) for n in (2, 8, 12, 15)]
    others = [record(6, entropy=w, backbone="resnet-32", shape=(16, 32, 32)) for w in (0.0, 1.0)]
    stepped = record(12, entropy=1.0, shape=shape, final=0.885, huffman=2000, step=8)
    return [*five, *twelve, *sparse, record(4, entropy=1.0, shape=four), *exits, *others, stepped]
