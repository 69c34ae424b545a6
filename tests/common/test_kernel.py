"""The compiled coders are the reference coders: the same bytes, the same refusals; nothing crashes them."""

from __future__ import annotations

from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.common.codec import activation
from offramp.common.codec.activation import CompiledCoder, HuffmanCoder, RansCoder, RunHuffmanCoder, Shape
from offramp.common.codec.context import ContextCoder
from offramp.common.codec.huffman import Codebook
from offramp.common.codec.rans import RansTables
from offramp.common.codec.run_huffman import RunTable, RunTables
from offramp.common.errors import PayloadError
from tests.common import coders
from tests.common.coders import LENGTHS, Reference, compiled, outcome, size_of

pytestmark = pytest.mark.skipif(not coders.COMPILED, reason="no compiler built the kernel here")


@pytest.fixture
def kernel() -> ModuleType:
    """The extension module itself."""
    assert activation._kernel is not None
    return activation._kernel


def run_huffman(shape: Shape, tables: list[RunTable], lanes: int = 1, mode: int = 0) -> RunHuffmanCoder:
    """A reference coder whose channels have these tables in turn."""
    channels = np.arange(shape[0])
    of_channel = (channels % len(tables)).astype(np.uint16)
    modes = (mode + channels).astype(np.uint8)
    return RunHuffmanCoder(shape, RunTables(tuple(tables), of_channel, modes), lanes)


@settings(max_examples=400)
@given(coders.cases())
def test_both_write_the_same_bytes_and_read_them(case: tuple[Reference, bytes]) -> None:
    coder, symbols = case
    payload = coder.encode(symbols)

    assert compiled(coder).encode(symbols) == payload
    expected = symbols if len(payload) <= len(symbols) else None
    assert outcome(coder, payload) == expected
    assert outcome(compiled(coder), payload) == expected


@settings(max_examples=400)
@given(case=coders.cases(), data=st.data())
def test_both_refuse_the_same_damage(case: tuple[Reference, bytes], data: st.DataObject) -> None:
    coder, symbols = case
    twin, payload = compiled(coder), coder.encode(symbols)
    for _ in range(8):
        damaged = data.draw(coders.damages(payload))
        found = outcome(coder, damaged)

        assert outcome(twin, damaged) == found
        if found is not None:
            assert coder.encode(found) == twin.encode(found) == damaged


@settings(max_examples=400)
@given(coder=coders.reference_coders, payloads=st.lists(st.binary(max_size=80), max_size=8))
def test_both_refuse_the_same_random_bytes(coder: Reference, payloads: list[bytes]) -> None:
    twin = compiled(coder)
    for payload in payloads:
        found = outcome(coder, payload)

        assert outcome(twin, payload) == found
        if found is not None:
            assert coder.encode(found) == payload


@given(case=coders.cases())
def test_every_truncation_is_refused_or_is_another_activation(case: tuple[Reference, bytes]) -> None:
    coder, symbols = case
    twin, payload = compiled(coder), coder.encode(symbols)
    for size in range(len(payload) - 1, max(-1, len(payload) - 60), -1):
        found = outcome(twin, payload[:size])

        assert found is None or (found != symbols and twin.encode(found) == payload[:size])


@pytest.mark.parametrize(
    "coder",
    [
        HuffmanCoder((1, 1, 2), Codebook(LENGTHS[[2]], np.zeros(1, np.uint16)), 1),
        HuffmanCoder((1, 1, 2), Codebook(LENGTHS[[3]], np.zeros(1, np.uint16)), 1),
        RansCoder((1, 1, 2), RansTables((coders.ONE_TOKEN,), np.zeros(1, np.uint16)), 1),
        RansCoder((1, 1, 2), RansTables((coders.ALL_SYMBOLS,), np.zeros(1, np.uint16)), 1),
        RansCoder(
            (1, 1, 2),
            RansTables((coders.rans_table(2, 0, [(0, 1), (1, 2)], [200]),), np.zeros(1, np.uint16)),
            1,
        ),
        RansCoder(
            (1, 2, 1),
            RansTables((coders.rans_table(1, 0, [(0, 1), (0, 2)], [40]),), np.zeros(1, np.uint16)),
            1,
        ),
        run_huffman((1, 1, 2), [coders.run_table(1, 256, 0, 1, 3)]),
        run_huffman((1, 1, 2), [coders.run_table(2, 5, 0, 0.5, 1)], mode=7),
        run_huffman((1, 2, 1), [coders.run_table(3, 1, 6, 0, 2)]),
        ContextCoder(coders.context_model((1, 1, 2), 2, 30)),
        ContextCoder(coders.context_model((2, 1, 1), 15, 1 << 15)),
    ],
    ids=[
        "huffman",
        "huffman-steep",
        "one-token",
        "all-symbols",
        "runs",
        "escapes",
        "run-huffman-plain",
        "run-huffman-runs",
        "run-huffman-escapes",
        "context",
        "context-steep",
    ],
)
def test_of_all_payloads_of_two_bytes_those_that_an_encoder_writes_are_taken(coder: Reference) -> None:
    """Every payload there is, for an activation of two symbols, against every activation."""
    twin = compiled(coder)
    written = {twin.encode(bytes(pair)): bytes(pair) for pair in product(range(256), repeat=2)}
    assert len(written) == 65_536

    for size in range(3):
        for payload in product(range(256), repeat=size):
            assert outcome(twin, bytes(payload)) == written.get(bytes(payload))


@pytest.mark.parametrize("plane", [(1, 1), (3, 5), (4, 4), (1, 17), (8, 8)])
@pytest.mark.parametrize("kind", ["huffman", "run-huffman", "rans"])
def test_four_lanes_and_the_ones_beside_them(kind: str, plane: tuple[int, int]) -> None:
    """Every number of lanes for these channels: four lanes are coded side by side, others alone."""
    rng = np.random.default_rng(0)
    names = [(run, symbol) for run in range(4) for symbol in range(4)]
    tables = tuple(coders.rans_table(runs, 0, names[: 4 * runs], [30]) for runs in (1, 4))
    for channels in range(2, 10):
        shape: Shape = (channels, *plane)
        symbols = (rng.integers(0, 5, shape) * (rng.random(shape) < 0.3)).astype(np.uint8).tobytes()
        mapped = (np.arange(channels) % 2).astype(np.uint16)
        for lanes in range(1, min(8, channels) + 1):
            coder: Reference
            if kind == "huffman":
                coder = HuffmanCoder(shape, Codebook(LENGTHS[[2, 3]], mapped), lanes)
            elif kind == "run-huffman":
                own = [coders.run_table(8, 4, 2, 0.7, 2), coders.run_table(1, 256, 0, 1, 3)]
                coder = run_huffman(shape, own, lanes)
            else:
                coder = RansCoder(shape, RansTables(tables, mapped), lanes)
            payload = coder.encode(symbols)

            assert compiled(coder).encode(symbols) == payload
            if len(payload) <= len(symbols):
                assert compiled(coder).decode(payload) == coder.decode(payload) == symbols


@pytest.mark.parametrize("lanes", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("seed", range(4))
def test_run_huffman_segments_of_all_kinds_side_by_side(lanes: int, seed: int) -> None:
    """Long segments: whole windows, taken back at a segment's end; long codes and escapes among them."""
    rng = np.random.default_rng(seed)
    shape: Shape = (12, 16, 20)
    tables = [
        coders.run_table(1, 256, 0, 1, 2, seed),
        coders.run_table(4, 20, 2, 0.8, 2, seed),
        coders.run_table(64, 3, 0, 0.9, 1, seed),
        coders.run_table(1, 256, 0, 1, 9, seed),
    ]
    coder = run_huffman(shape, tables, lanes, mode=200)
    scale = rng.choice([0.05, 0.3, 0.7], (12, 1, 1))
    noise = np.rint(rng.laplace(0, scale, shape)) + (rng.random(shape) < 0.002) * 100
    symbols = ((noise + 200 + np.arange(12)[:, None, None]) % 256).astype(np.uint8).tobytes()
    payload = coder.encode(symbols)
    twin = compiled(coder)

    assert len(payload) < len(symbols)
    assert twin.encode(symbols) == payload
    assert twin.decode(payload) == coder.decode(payload) == symbols
    for at in rng.integers(0, 8 * len(payload), 12):
        damaged = bytearray(payload)
        damaged[at // 8] ^= 1 << at % 8
        assert outcome(twin, bytes(damaged)) == outcome(coder, bytes(damaged))


@pytest.mark.parametrize("kind", ["huffman", "rans"])
def test_planes_and_lanes_beyond_64_ki_symbols(kind: str) -> None:
    shape: Shape = (2, 1, 70_000)
    mapped = np.zeros(2, np.uint16)
    coder: Reference = (
        HuffmanCoder(shape, Codebook(LENGTHS[[2]], mapped), 2)
        if kind == "huffman"
        else RansCoder(shape, RansTables((coders.FLAT,), mapped), 2)
    )
    symbols = (np.arange(140_000) * 37 % 251 % (7 if kind == "huffman" else 256)).astype(np.uint8).tobytes()
    twin, payload = compiled(coder), compiled(coder).encode(symbols)

    assert payload == coder.encode(symbols)
    length = int.from_bytes(payload[:4], "little")
    assert length > 65_535 or kind == "huffman"
    if len(payload) <= len(symbols):
        assert twin.decode(payload) == symbols
        for damaged in payload[:-1], payload + b"\0", bytes(4) + payload[4:], b"\xff" * 4 + payload[4:]:
            assert outcome(twin, damaged) is None


@given(coders.cases())
def test_what_an_earlier_payload_left_behind_is_not_seen(case: tuple[Reference, bytes]) -> None:
    coder, symbols = case
    twin, fresh = compiled(coder), compiled(coder)
    payload = coder.encode(symbols)
    outcome(twin, b"\xff" * size_of(coder))
    outcome(twin, bytes(size_of(coder)))

    for size in range(max(0, len(payload) - 9), len(payload) + 1):
        assert outcome(twin, payload[:size]) == outcome(fresh, payload[:size])


def test_a_coder_reads_any_buffer_and_returns_bytes(kernel: ModuleType) -> None:
    coder = kernel.Huffman(1, 4, 1, LENGTHS[3].tobytes(), bytes(2))
    payload = coder.encode(bytearray(4))

    assert type(payload) is bytes
    assert coder.decode(memoryview(payload)) == bytes(4)
    for wrong in "text", None, 7, np.zeros((2, 2), np.uint8).T[:, ::-1]:
        with pytest.raises((TypeError, BufferError, ValueError)):
            coder.encode(wrong)
        with pytest.raises((TypeError, BufferError, ValueError)):
            coder.decode(wrong)


@pytest.mark.parametrize("size", [0, 3, 5, 1 << 20])
@pytest.mark.parametrize("kind", ["Huffman", "RunHuffman", "Rans"])
def test_symbols_of_another_number_are_refused(kernel: ModuleType, kind: str, size: int) -> None:
    coder = getattr(kernel, kind)(*GOOD[kind])
    with pytest.raises(ValueError, match=f"^{size} symbols, expected 16$"):
        coder.encode(bytes(size))


RUN_TABLES = RunTables(
    (coders.run_table(4, 3, 1, 1, 1), coders.run_table(1, 256, 0, 1, 1)),
    np.array([0, 1, 0, 1], np.uint16),
    np.array([0, 255, 3, 0], np.uint8),
)
GOOD: dict[str, tuple[Any, ...]] = {
    "RunHuffman": (
        4,
        4,
        2,
        RUN_TABLES.to_kernel(),
        RUN_TABLES.table_of_channel.tobytes(),
        RUN_TABLES.mode_of_channel.tobytes(),
    ),
    "Huffman": (4, 4, 2, LENGTHS[:2].tobytes(), np.array([0, 1, 0, 1], np.uint16).tobytes()),
    "Rans": (
        4,
        4,
        2,
        RansTables((coders.FLAT, coders.ONE_TOKEN), np.array([0, 1, 0, 1], np.uint16)).to_kernel(),
        np.array([0, 1, 0, 1], np.uint16).tobytes(),
    ),
}
# What is a table of one coder is several, or too short a one, of another.
NO_TABLES = r"the tables are no complete code|channels, plane, lanes and tables do not fit"
WRONG = {
    "no-channels": (0, 0, r"channels, plane, lanes and tables do not fit"),
    "other-channels": (0, 5, r"channels, plane, lanes and tables do not fit"),
    "no-plane": (1, 0, r"channels, plane, lanes and tables do not fit"),
    "too-many-symbols": (1, (1 << 32) - 1, r"channels, plane, lanes and tables do not fit"),
    "no-lanes": (2, 0, r"channels, plane, lanes and tables do not fit"),
    "nine-lanes": (2, 9, r"channels, plane, lanes and tables do not fit"),
    "more-lanes-than-channels": (2, 5, r"channels, plane, lanes and tables do not fit"),
    "no-tables": (3, b"", r"channels, plane, lanes and tables do not fit"),
    "tables-of-zeros": (3, bytes(4096), NO_TABLES),
    "tables-of-ones": (3, b"\1" * 4096, NO_TABLES),
    "tables-of-255": (3, b"\xff" * 4096, NO_TABLES),
    "short-map": (4, bytes(7), r"channels, plane, lanes and tables do not fit"),
    "table-not-there": (4, bytes([0, 0, 1, 0, 0, 0, 2, 0]), r"a channel names a table that is not there"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("kind", GOOD)
def test_wrong_arguments_are_refused(kernel: ModuleType, kind: str, name: str) -> None:
    place, value, expected = WRONG[name]
    arguments: list[object] = list(GOOD[kind])
    getattr(kernel, kind)(*arguments)
    arguments[place] = value
    with pytest.raises(ValueError, match=expected):
        getattr(kernel, kind)(*arguments)


@pytest.mark.parametrize("modes", [b"", bytes(3), bytes(5)])
def test_run_huffman_needs_a_mode_for_each_channel(kernel: ModuleType, modes: bytes) -> None:
    with pytest.raises(ValueError, match=r"^there is not one mode for each channel$"):
        kernel.RunHuffman(*GOOD["RunHuffman"][:5], modes)


@pytest.mark.parametrize("cut", [1, 5, 256, 257, 258])
def test_run_huffman_tables_that_end_within_one_are_refused(kernel: ModuleType, cut: int) -> None:
    arguments = list(GOOD["RunHuffman"])
    arguments[3] = arguments[3][:-cut]
    with pytest.raises(ValueError, match=r"do not fit together$"):
        kernel.RunHuffman(*arguments)


@pytest.mark.parametrize("kind", GOOD)
@given(data=st.data())
def test_damaged_tables_are_refused_or_code_what_they_decode(kind: str, data: st.DataObject) -> None:
    """Past the checks in Python: the compiled coders keep to their memory on their own."""
    kernel = activation._kernel
    assert kernel is not None
    channels, plane, lanes, tables, *mapped = GOOD[kind]
    damaged = bytearray(tables)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        coder = getattr(kernel, kind)(channels, plane, lanes, bytes(damaged), *mapped)
    except ValueError:
        return
    for symbols in bytes(16), bytes(range(16)), b"\xff" * 16:
        payload = coder.encode(symbols)
        assert len(payload) > 16 or coder.decode(payload) == symbols


MODEL = coders.context_model((4, 2, 2), 3, 30)


@pytest.mark.parametrize(
    "arguments",
    [
        (0, 2, 2, MODEL.to_bytes()),
        (257, 2, 2, MODEL.to_bytes()),
        (4, 0, 2, MODEL.to_bytes()),
        (4, 2, 0, MODEL.to_bytes()),
        (4, 65_536, 2, MODEL.to_bytes()),
        (4, 1 << 31, 1 << 31, MODEL.to_bytes()),
        (256, 65_535, 65_535, MODEL.to_bytes()),
        (4, 2, 2, b""),
        (4, 2, 2, MODEL.to_bytes()[:-1]),
        (4, 2, 2, MODEL.to_bytes() + b"\0"),
        (4, 2, 2, b"\0" + MODEL.to_bytes()[1:]),
        (4, 2, 2, b"\x10" + MODEL.to_bytes()[1:]),
    ],
)
def test_a_context_model_that_does_not_fit_is_refused(kernel: ModuleType, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"^channels, height, width and model do not fit together$"):
        kernel.Context(*arguments)


@given(data=st.data())
def test_a_damaged_context_model_codes_what_it_decodes(data: st.DataObject) -> None:
    """Weights for symbols that come later too, which the check in Python refuses."""
    kernel = activation._kernel
    assert kernel is not None
    damaged = bytearray(MODEL.to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(1, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    coder = kernel.Context(4, 2, 2, bytes(damaged))
    for symbols in bytes(16), bytes(range(16)), b"\xff" * 16:
        payload = coder.encode(symbols)
        assert len(payload) > 16 or coder.decode(payload) == symbols
    with pytest.raises(ValueError, match=r"^3 symbols, expected 16$"):
        coder.encode(bytes(3))


def test_errors_of_the_compiled_coder_are_payload_errors() -> None:
    coder = HuffmanCoder((1, 4, 4), Codebook(LENGTHS[[3]], np.zeros(1, np.uint16)), 1)
    twin = CompiledCoder(coder.shape, coder.codebook, 1)
    for payload, expected in {
        b"": "the payload ends before its last symbol",
        bytes(3): "the payload is longer than its symbols need",
        bytes(17): "the payload is longer than its symbols need",
    }.items():
        with pytest.raises(PayloadError, match=expected):
            twin.decode(payload)


def test_types_cannot_be_made_without_their_tables(kernel: ModuleType) -> None:
    for kind in kernel.Huffman, kernel.RunHuffman, kernel.Rans, kernel.Context:
        with pytest.raises(TypeError):
            kind()
        with pytest.raises(TypeError):
            object.__new__(kind)
        with pytest.raises(TypeError):
            type("Sub", (kind,), {})
