"""Milliseconds and millijoules an image, modelled: a microcontroller with its radio, beside other ways.

    python runs/microcontroller_energy.py --out build/energy \\
        models/digits-mobilenetv2-exit12=examples/digits models/cifar10-mobilenetv2-rate=CIFAR10_PICTURES

Instructions and datagrams are those that `runs/microcontroller.py` measures; `microcontroller_model.py` has
the published figures and the formulas, and prints their sources. Writes the tables as Markdown, and a plot
for each bundle. What was measured is kept beside them: a BUNDLE without =PICTURES takes it from there.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from microcontroller import chosen, measured
from microcontroller_model import CORES, RADIOS, Core
from numpy.typing import NDArray
from PIL import Image

from offramp.bench.plots import Plot, Series, draw
from offramp.common.bundle.load import Bundle, load_bundle

QUALITY = 75
OURS, SENT, ALONE, WHOLE = "ours, at T_c", "ours, every image sent", "early exit alone", "whole model on it"
JPEG, WEBP, RAW = f"JPEG {QUALITY}", f"WebP {QUALITY}", "pixels"
PLOTTED = CORES[0]


def main() -> None:
    """Measure each bundle, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", nargs="+", metavar="BUNDLE[=PICTURES]")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    tables: list[list[str]] = [CORE_HEAD, []]
    for pair in arguments.pairs:
        found = figures(pair, arguments.count, arguments.out)
        name = found["bundle"]
        tables[0] = tables[0] + core_lines(found)
        tables[1] += [f"### {name}", "", *radio_lines(found), ""]
        draw(plot(found), arguments.out / f"microcontroller-{name}")
    lines = [*tables[0], "", *tables[1], *sources()]
    (arguments.out / "energy.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def figures(pair: str, count: int, out: Path) -> dict[str, Any]:
    """What is measured of one bundle, kept in OUT/NAME.json; read from there where no pictures are given."""
    path, _, folder = pair.partition("=")
    bundle = load_bundle(path)
    kept = out / f"{bundle.manifest.name}.json"
    if folder:
        images = chosen(bundle, Path(folder), count)
        found = measured(bundle, images)
        found["tail_macs"] = macs_of(bundle)
        found["pictures"] = {name: pictures(images, name) for name in (JPEG, WEBP)}
        kept.write_text(json.dumps(found, indent=1) + "\n")
    read: dict[str, Any] = json.loads(kept.read_text())
    return read


def macs_of(bundle: Bundle) -> int:
    """Multiplications of the server's half for one image."""
    from onnx import ModelProto, shape_inference

    model = shape_inference.infer_shapes(ModelProto.FromString(bundle.tail))
    shapes = {each.name: list(each.dims) for each in model.graph.initializer}
    for value in (*model.graph.value_info, *model.graph.output):
        shapes[value.name] = [each.dim_value for each in value.type.tensor_type.shape.dim]
    total = 0
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            weights, out = shapes[node.input[1]], shapes[node.output[0]]
            each = np.prod(weights[1:]) if node.op_type == "Conv" else np.prod(weights) // out[-1]
            total += int(each * np.prod(out[1:]))
    return total


def pictures(images: NDArray[np.uint8], kind: str) -> list[int]:
    """Bytes of each picture in the network's size."""
    sizes = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(stream, kind.split()[0], quality=QUALITY)
        sizes.append(stream.tell())
    return sizes


def cycles_of(found: dict[str, Any]) -> float:
    """Of a Cortex-M4, for the head."""
    return float(found["instructions_mean"] * found["cycles_an_instruction"]["middle"])


CORE_HEAD = [
    "| bundle | instructions | cycles each, Cortex-M4 | "
    + " | ".join(f"{each.chip}, ms / mJ" for each in CORES)
    + " |",
    "|---|---:|---:|" + "---:|" * len(CORES),
]


def core_lines(found: dict[str, Any]) -> list[str]:
    """A line of the first table: the head on each core."""
    each = found["cycles_an_instruction"]
    cycles = cycles_of(found)
    cells = [f"{1e3 * core.seconds(cycles):,.0f} / {1e3 * core.joules(cycles):.1f}" for core in CORES]
    return [
        f"| {found['bundle']} | {found['instructions_mean'] / 1e6:.1f} M | "
        f"{each['middle']:.2f} ({each['least']:.2f} … {each['most']:.2f}) | " + " | ".join(cells) + " |"
    ]


def ways(found: dict[str, Any]) -> dict[str, tuple[float, list[int]]]:
    """Each way: what it computes, in heads, and the bytes of each message; 0 of an image that sends none."""
    datagrams, unsure = found["datagram_bytes"], found["unsure"]
    whole = (found["macs"] + found["tail_macs"]) / found["macs"]
    return {
        OURS: (1.0, [size if sends else 0 for size, sends in zip(datagrams, unsure, strict=True)]),
        SENT: (1.0, datagrams),
        ALONE: (1.0, [0]),
        WHOLE: (whole, [0]),
        JPEG: (0.0, found["pictures"][JPEG]),
        WEBP: (0.0, found["pictures"][WEBP]),
        RAW: (0.0, [found["picture_bytes"]]),
    }


def joules(heads: float, sizes: list[int], radio: int, core: Core, cycles: float) -> float:
    """An image, on average."""
    sent = [RADIOS[radio].cost(size).joules for size in sizes if size]
    return heads * core.joules(cycles) + sum(sent) / len(sizes)


def radio_lines(found: dict[str, Any]) -> list[str]:
    """The second table of one bundle: millijoules an image, core and radio, for each way and radio."""
    cycles = cycles_of(found)
    lines = [
        "| way | B an image | " + " | ".join(f"{radio.name}, mJ" for radio in RADIOS) + " |",
        "|---|---:|" + "---:|" * len(RADIOS),
    ]
    for name, (heads, sizes) in ways(found).items():
        cells = [f"{1e3 * joules(heads, sizes, index, PLOTTED, cycles):,.4g}" for index in range(len(RADIOS))]
        lines.append(f"| {name} | {np.mean(sizes):,.1f} | " + " | ".join(cells) + " |")
    return lines


def plot(found: dict[str, Any]) -> Plot:
    """The same as bars."""
    names = [radio.name for radio in RADIOS]
    series = [
        Series(
            name,
            names,
            [1e3 * joules(heads, sizes, index, PLOTTED, cycles_of(found)) for index in range(len(RADIOS))],
            paper=name in (JPEG, WEBP, RAW),
        )
        for name, (heads, sizes) in ways(found).items()
        if name not in (WEBP, ALONE)
    ]
    title = f"{found['bundle']}: {PLOTTED.chip} and radio, modelled"
    return Plot(title, "radio", "mJ an image", series, kind="bars", log_y=True)


def sources() -> list[str]:
    """Where the figures are from."""
    cores = [
        f"- {core.chip} ({core.name}), {core.hertz / 1e6:.0f} MHz, {1e3 * core.watts:.1f} mW, "
        f"{1e12 * core.watts / core.hertz:.0f} pJ a cycle: {core.source}."
        for core in CORES
    ]
    return [*cores, *(f"- {radio.name}: {radio.source}." for radio in RADIOS)]


if __name__ == "__main__":
    main()
