"""``offramp codec compare``: every coder's bytes on a bundle's own activations, beside their entropies."""

from __future__ import annotations

import json
import tomllib
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from offramp.bench.activations import bundle_activations
from offramp.bench.overhead import channel_bits
from offramp.common.arguments import Parser
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.bundle.manifest import Raw
from offramp.common.codec.activation import Symbols, Tables
from offramp.common.codec.context import ContextModel
from offramp.common.codec.huffman import SYMBOLS, entropy_bits
from offramp.training.calibrate.codebook import compare, payload_bytes, symbol_counts
from offramp.training.calibrate.rans_tables import choose_runs, token_counts

EPILOG = """\
examples:
  offramp codec compare models/digits-mobilenetv2-exit12
  offramp codec compare models/* --json       # one bundle for each layer and weight of the entropy
  offramp codec compare DIR --images DIR --channels

Tables of coders that the bundle does not name are counted on every other picture; all bytes and entropies
are those of the rest. An empirical entropy has its own table for free: where there are few symbols for each
value that it counts, no coder can reach it.
"""
TENSOR, CHANNEL = "the tensor", "the channel"
LEFT, TOKENS = "the channel and the left neighbour", "the channel, in tokens of runs"
"""What a symbol's entropy is given."""


@dataclass(frozen=True)
class Coded:
    """One coder on the measured activations."""

    name: str
    lanes: int | None
    tables: int | None
    table_bytes: int | None
    """Stored on the device."""
    bytes_mean: float
    in_bundle: bool


@dataclass(frozen=True)
class Entropy:
    """One empirical entropy of the measured activations, as bytes of a frame."""

    name: str
    bytes_mean: float
    bits_a_symbol: float
    symbols_a_value: float
    """How many symbols there are for each value that occurs in its context."""


@dataclass(frozen=True)
class Channel:
    """One channel. bits_…: bits a symbol."""

    channel: int
    values: int
    """Different symbols that occur."""
    mode_share: float
    runs: int
    """Modes that rANS's tokens join at most."""
    bits_entropy: float
    bits_given_left: float
    bits_in_bundle: float | None
    bits: dict[str, float]
    """In each other coder's tables."""


@dataclass(frozen=True)
class Comparison:
    """All of it for one bundle."""

    bundle: str
    split: str
    entropy_weight: float | None
    """λ_e of its recipe, if it has one."""
    shape: tuple[int, int, int]
    images: int
    raw_bytes: int
    coded: list[Coded]
    entropies: list[Entropy]
    channels: list[Channel]


def main(argv: Sequence[str]) -> int:
    """Run the command; raises OfframpError."""
    parser = Parser("offramp codec", description="Look at how activations are coded.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    sub = commands.add_parser(
        "compare",
        help="every coder's bytes on a bundle's activations, beside their entropies",
        description="Run a bundle's head on pictures and compare what each coder makes of the activations.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    sub.add_argument("bundle", nargs="+", type=Path, help="the bundle's directory")
    sub.add_argument("--images", type=Path, default=Path("examples/digits"), help="pictures for the head")
    sub.add_argument("--channels", action="store_true", help="a line for each channel as well")
    sub.add_argument("--json", action="store_true", help="all figures as JSON, a list of bundles")
    arguments = parser.parse_args(argv)
    found = [compare_bundle(load_bundle(path), arguments.images) for path in arguments.bundle]
    if arguments.json:
        print(json.dumps([asdict(each) for each in found], indent=1))
    else:
        print("\n\n".join("\n".join(card(each, arguments.channels)) for each in found))
    return 0


def compare_bundle(bundle: Bundle, images: Path) -> Comparison:
    """Code what the bundle's head makes of a folder's pictures. Raises OfframpError."""
    with tqdm(desc=bundle.manifest.name, unit="image", disable=None) as progress:
        symbols = bundle_activations(bundle, images, progress.update)
    calibration, measured = symbols[0::2], symbols[1::2]
    entry = bundle.manifest.codec
    coded = [Coded("raw", None, None, None, float(bundle.codec.raw_bytes), isinstance(entry, Raw))]
    if bundle.tables is not None and not isinstance(entry, Raw):
        mean = payload_bytes(bundle.tables, entry.lanes, measured).mean()
        coded.append(_coded(f"the bundle's {entry.kind}", bundle.tables, entry.lanes, mean, in_bundle=True))
    candidates = compare(calibration, measured)
    coded += [_coded(each.name, each.tables, each.lanes, each.payload_bytes_mean) for each in candidates]
    manifest = bundle.manifest
    return Comparison(
        bundle=bundle.manifest.name,
        split=f"{manifest.model}, exit {manifest.cut.number} ({manifest.cut.name})",
        entropy_weight=entropy_weight(bundle.manifest.provenance.recipe),
        shape=bundle.manifest.activation.coded_shape,
        images=len(measured),
        raw_bytes=bundle.codec.raw_bytes,
        coded=coded,
        entropies=entropies(calibration, measured),
        channels=channel_details(
            bundle.tables, {each.name: each.tables for each in candidates}, calibration, measured
        ),
    )


def _coded(name: str, tables: Tables, lanes: int, mean: float, *, in_bundle: bool = False) -> Coded:
    count = 1 if isinstance(tables, ContextModel) else int(tables.table_of_channel.max()) + 1
    return Coded(name, lanes, count, tables.stored_bytes, float(mean), in_bundle)


def entropy_weight(recipe: str) -> float | None:
    """λ_e of a recipe's text; None where it says nothing of it."""
    try:
        weight = tomllib.loads(recipe)["train"]["regularised"]["entropy"]
    except (tomllib.TOMLDecodeError, KeyError, TypeError):
        return None
    return float(weight) if isinstance(weight, int | float) else None


def entropies(calibration: Symbols, measured: Symbols) -> list[Entropy]:
    """Empirical entropies of activations, uint8 [N, C, H, W], by what is known of a symbol.

    calibration: on which the tokens of runs are chosen; their counts are those of ``measured``.
    """
    counts = symbol_counts(measured)
    by_left, cells = left_bits(measured)
    tokens = [channel_tokens(calibration, measured, channel) for channel in range(len(counts))]
    token_bits = sum(entropy_bits(each) for each in tokens)
    token_values = sum(int(np.count_nonzero(each)) for each in tokens)
    found = [
        (TENSOR, entropy_bits(counts.sum(axis=0)), int(np.count_nonzero(counts.sum(axis=0)))),
        (CHANNEL, entropy_bits(counts), int(np.count_nonzero(counts))),
        (LEFT, float(by_left.sum()), cells),
        (TOKENS, token_bits, token_values),
    ]
    return [
        Entropy(name, bits / 8 / len(measured), bits / measured.size, measured.size / values)
        for name, bits, values in found
    ]


def left_bits(symbols: Symbols) -> tuple[NDArray[np.float64], int]:
    """Empirical entropy of each channel given the symbol to the left, bits in all, [C]; and how many pairs.

    A symbol without one to its left has a context of its own.
    """
    bits, pairs = np.zeros(symbols.shape[1]), 0
    for channel in range(symbols.shape[1]):
        plane = symbols[:, channel].astype(np.int64)
        left = np.full(plane.shape, SYMBOLS)
        left[..., 1:] = plane[..., :-1]
        joint = np.bincount((left * SYMBOLS + plane).ravel(), minlength=(SYMBOLS + 1) * SYMBOLS)
        bits[channel] = entropy_bits(joint.reshape(SYMBOLS + 1, SYMBOLS))
        pairs += int(np.count_nonzero(joint))
    return bits, pairs


def channel_tokens(calibration: Symbols, measured: Symbols, channel: int) -> NDArray[np.int64]:
    """Counts of one channel's tokens, with the runs that calibration would choose."""
    kind = choose_runs(_planes(calibration, channel))
    return token_counts(_planes(measured, channel), *kind)


def _planes(symbols: Symbols, channel: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(symbols[:, channel]).reshape(len(symbols), -1)


def channel_details(
    in_bundle: Tables | None, others: dict[str, Tables], calibration: Symbols, measured: Symbols
) -> list[Channel]:
    """Each channel's entropies and what it takes in each coder's tables, padding and lanes aside."""
    counts = symbol_counts(measured)
    given_left, _ = left_bits(measured)
    prices = {name: channel_bits(tables, measured) for name, tables in others.items()}
    own_price = None if in_bundle is None else channel_bits(in_bundle, measured)
    details = []
    for channel, own in enumerate(counts):
        size = int(own.sum())
        details.append(
            Channel(
                channel=channel,
                values=int(np.count_nonzero(own)),
                mode_share=float(own.max()) / size,
                runs=choose_runs(_planes(calibration, channel))[0],
                bits_entropy=entropy_bits(own) / size,
                bits_given_left=float(given_left[channel]) / size,
                bits_in_bundle=None if own_price is None else float(own_price[channel]) / size,
                bits={name: float(price[channel]) / size for name, price in prices.items()},
            )
        )
    return details


def card(found: Comparison, channels: bool) -> list[str]:
    """One bundle's comparison, in lines."""
    symbols = found.raw_bytes
    within = next(entropy.bytes_mean for entropy in found.entropies if entropy.name == CHANNEL) or 1.0
    weight = "" if found.entropy_weight is None else f", λ_e = {found.entropy_weight:g}"
    lines = [
        f"{found.bundle}: {found.split}{weight}; {'×'.join(map(str, found.shape))} symbols, "
        f"mean of {found.images} images",
        f"  {'coder':<34} {'bytes':>9} {'bits/symbol':>12} {'/ channel':>10} {'tables':>7} {'table B':>8}",
    ]
    for coded in found.coded:
        tables = "" if coded.tables is None else f"{coded.tables:>7} {coded.table_bytes:>8,}"
        lines.append(
            f"  {'*' if coded.in_bundle else ' '} {coded.name:<32} {coded.bytes_mean:>9,.1f} "
            f"{8 * coded.bytes_mean / symbols:>12.3f} {coded.bytes_mean / within:>10.3f} {tables}".rstrip()
        )
    lines.append(f"  {'empirical entropy, given':<34} {'':>9} {'':>12} {'':>10} {'symbols a value':>16}")
    lines += [
        f"    {entropy.name:<34} {entropy.bytes_mean:>7,.1f} {entropy.bits_a_symbol:>12.3f} "
        f"{entropy.bytes_mean / within:>10.3f} {entropy.symbols_a_value:>16,.0f}"
        for entropy in found.entropies
    ]
    lines.append("  * is what the bundle names; '/ channel' is over the entropy within channels")
    if channels:
        lines += _channel_lines(found.channels)
    return lines


def _channel_lines(channels: list[Channel]) -> list[str]:
    names = list(channels[0].bits)
    header = ["channel", "values", "mode", "runs", "entropy", "given left", "in bundle", *names]
    widths = [max(len(name), 7) for name in header]
    lines = [
        "  bits a symbol, by channel",
        "  " + "  ".join(f"{n:>{w}}" for n, w in zip(header, widths, strict=True)),
    ]
    for each in channels:
        own = "" if each.bits_in_bundle is None else f"{each.bits_in_bundle:.3f}"
        cells = [
            str(each.channel), str(each.values), f"{each.mode_share:.1%}", str(each.runs),
            f"{each.bits_entropy:.3f}", f"{each.bits_given_left:.3f}", own,
            *(f"{each.bits[name]:.3f}" for name in names),
        ]  # fmt: skip
        lines.append("  " + "  ".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)))
    return lines
