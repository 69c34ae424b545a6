"""Payloads: every activation comes back, and only the bytes that code it do."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from offramp.common.codec import activation
from offramp.common.codec.activation import (
    ActivationCodec,
    CodecId,
    Coder,
    CompiledCoder,
    HuffmanCoder,
    RansCoder,
    RunHuffmanCoder,
    Shape,
    Symbols,
    Tables,
    coder_kind,
    make_coder,
)
from offramp.common.codec.context import ContextCoder
from offramp.common.codec.huffman import SYMBOLS, Codebook
from offramp.common.codec.lanes import lane_channels
from offramp.common.codec.rans import RansTables
from offramp.common.codec.run_huffman import RunTables
from offramp.common.errors import CodecError, PayloadError
from offramp.v1 import inference_pb2 as pb
from tests.common import coders
from tests.common.coders import LENGTHS, Reference, lanes_of, outcome, size_of

ROOT = Path(__file__).parents[3]


def one_of_each_kind(coder: Reference) -> list[Coder]:
    """The coder and, where there is a compiler, its twin."""
    return [coder, coders.compiled(coder)] if coders.COMPILED else [coder]


def bit_strings(coder: HuffmanCoder, symbols: bytes) -> list[str]:
    """The format as its documentation states it, symbol by symbol: each lane's bits, without padding."""
    book, plane, lanes = coder.codebook, size_of(coder) // coder.shape[0], []
    for channels in lane_channels(coder.shape[0], coder.lanes):
        words = []
        for c in channels:
            table = int(book.table_of_channel[c])
            channel = symbols[c * plane : (c + 1) * plane]
            words += [f"{book.codes[table, s]:0{book.lengths[table, s]}b}" for s in channel]
        lanes.append("".join(words))
    return lanes


@given(coders.cases(coders.huffman_coders()))
def test_codewords_in_channel_order_then_zero_bits(case: tuple[HuffmanCoder, bytes]) -> None:
    coder, symbols = case
    expected = []
    for bits in bit_strings(coder, symbols):
        size = math.ceil(len(bits) / 8)
        expected.append(int(bits.ljust(8 * size, "0"), 2).to_bytes(size))

    for each in one_of_each_kind(coder):
        assert lanes_of(coder, each.encode(symbols)) == expected


@given(coders.cases())
def test_round_trip(case: tuple[Reference, bytes]) -> None:
    coder, symbols = case
    for each in one_of_each_kind(coder):
        payload = each.encode(symbols)
        if len(payload) <= len(symbols):
            assert each.decode(payload) == symbols


@given(coders.cases())
def test_the_shorter_of_coded_and_raw_comes_back(case: tuple[Reference, bytes]) -> None:
    coder, flat = case
    symbols = np.frombuffer(flat, np.uint8).reshape(coder.shape)
    for each in one_of_each_kind(coder):
        codec = ActivationCodec(coder.shape, each)
        kind, payload = codec.encode(symbols)

        coded = coder.encode(flat)
        assert kind is (CodecId.BUNDLE if len(coded) < codec.raw_bytes else CodecId.RAW)
        assert payload == (coded if kind is CodecId.BUNDLE else flat)
        decoded = codec.decode(kind, payload)
        assert decoded.dtype == np.uint8
        assert decoded.shape == coder.shape
        assert (decoded == symbols).all()


@given(coders.cases(coders.huffman_coders()))
def test_every_truncation_of_a_huffman_code_is_refused(case: tuple[Reference, bytes]) -> None:
    coder, symbols = case
    payload = coder.encode(symbols)
    for size in range(max(0, len(payload) - 40), min(len(payload), len(symbols))):
        with pytest.raises(PayloadError, match=r"the payload .* ends within"):
            coder.decode(payload[:size])


@given(coders.cases(), st.binary(min_size=1, max_size=3))
def test_every_byte_left_over_is_refused(case: tuple[Reference, bytes], extra: bytes) -> None:
    coder, symbols = case
    payload = coder.encode(symbols)
    for each in one_of_each_kind(coder):
        found = outcome(each, payload + extra)
        # What follows an rANS state that short may be another activation's words.
        assert found is None or isinstance(coder, RansCoder | ContextCoder)
        assert found is None or coder.encode(found) == payload + extra


@given(coders.cases(coders.huffman_coders()))
def test_every_padding_bit_that_is_set_is_refused(case: tuple[HuffmanCoder, bytes]) -> None:
    coder, symbols = case
    payload = coder.encode(symbols)
    if len(payload) > len(symbols):
        return
    for bit in range(-len(bit_strings(coder, symbols)[-1]) % 8):
        with pytest.raises(PayloadError, match="padding bits are not zero"):
            coder.decode(payload[:-1] + bytes([payload[-1] | 1 << bit]))


@given(
    coders.reference_coders,
    st.integers(-(2**31), 2**31 - 1) | st.sampled_from([0, 1]),
    st.binary(max_size=200),
)
def test_random_frames_raise_nothing_but_payload_and_codec_errors(
    coder: Reference, kind: int, payload: bytes
) -> None:
    for each in (*one_of_each_kind(coder), None):
        codec = ActivationCodec(coder.shape, each)
        try:
            symbols = codec.decode(kind, payload)
        except (PayloadError, CodecError):
            pass
        else:
            assert symbols.shape == codec.shape
            assert symbols.dtype == np.uint8
            assert codec.encode(symbols)[1] == payload or kind == CodecId.RAW


@pytest.mark.parametrize("table", range(len(LENGTHS)))
@pytest.mark.parametrize("kind", ["huffman", "rans"])
def test_every_symbol_can_be_coded(kind: str, table: int) -> None:
    """Beside symbols that are cheap, so that the code is no longer than the symbols."""
    mapped = np.zeros(1, np.uint16)
    shape: Shape = (1, 16, 256)
    coder: Reference
    cheap = int(LENGTHS[table].argmin())
    if kind == "huffman":
        coder = HuffmanCoder(shape, Codebook(LENGTHS[[table]], mapped), 1)
    else:
        runs = [1, 1, 2, 8, 64, 128][table]
        names = [(0, cheap), (0, 1)] if runs == 1 else [(0, 1)]
        coder = RansCoder(shape, RansTables((coders.rans_table(runs, cheap, names, [128]),), mapped), 1)
    symbols = bytes(range(SYMBOLS)) + bytes([cheap]) * (15 * SYMBOLS)
    for each in one_of_each_kind(coder):
        payload = each.encode(symbols)
        assert len(payload) <= len(symbols)
        assert each.decode(payload) == symbols


def flat_codec(*, shape: Shape = (1, 4, 4), table: int = 0) -> ActivationCodec:
    codebook = Codebook(LENGTHS[[table]], np.zeros(shape[0], np.uint16))
    return ActivationCodec(shape, HuffmanCoder(shape, codebook, 1))


def test_a_code_of_just_the_raw_size_is_sent_raw() -> None:
    codec = flat_codec(table=0)
    symbols = np.full(codec.shape, 200, np.uint8)

    assert codec.coder is not None
    assert len(codec.coder.encode(symbols.tobytes())) == codec.raw_bytes
    assert codec.encode(symbols) == (CodecId.RAW, symbols.tobytes())


def test_escape_to_raw_where_calibration_saw_other_symbols() -> None:
    codec = flat_codec(table=3)

    assert codec.encode(np.zeros(codec.shape, np.uint8)) == (CodecId.BUNDLE, bytes(2))
    assert codec.encode(np.full(codec.shape, 255, np.uint8)) == (CodecId.RAW, bytes([255]) * 16)


def test_symbols_need_not_be_contiguous_in_memory() -> None:
    shape: Shape = (2, 3, 4)
    codec = ActivationCodec(shape, make_coder(shape, Codebook(LENGTHS[[2]], np.zeros(2, np.uint16)), 2))
    channels_last = np.random.default_rng(0).integers(0, 9, (3, 4, 2)).astype(np.uint8)
    symbols = channels_last.transpose(2, 0, 1)

    assert codec.encode(symbols) == codec.encode(symbols.copy())


def test_many_channels_with_a_plane_of_one_symbol() -> None:
    shape: Shape = (4096, 1, 1)
    book = Codebook(LENGTHS[[1, 2, 3]], (np.arange(4096) % 3).astype(np.uint16))
    symbols = np.random.default_rng(0).choice([0, 1, 2], shape).astype(np.uint8)
    payloads = set()
    for coder in one_of_each_kind(HuffmanCoder(shape, book, 8)):
        codec = ActivationCodec(shape, coder)
        kind, payload = codec.encode(symbols)

        assert kind is CodecId.BUNDLE
        assert (codec.decode(kind, payload) == symbols).all()
        payloads.add(payload)
    assert len(payloads) == 1


def test_codec_ids_are_those_on_the_wire() -> None:
    assert {f"CODEC_{codec.name}": codec.value for codec in CodecId} == dict(pb.Codec.items())


REFUSED = {
    "raw-empty": (CodecId.RAW, b"", PayloadError, "a raw payload has 0 bytes, expected 16"),
    "raw-short": (CodecId.RAW, bytes(15), PayloadError, "a raw payload has 15 bytes, expected 16"),
    "raw-long": (CodecId.RAW, bytes(17), PayloadError, "a raw payload has 17 bytes, expected 16"),
    "coded-empty": (
        CodecId.BUNDLE,
        b"",
        PayloadError,
        "the payload has a lane of 0 bytes that ends within channel 0",
    ),
    "coded-raw-size": (
        CodecId.BUNDLE,
        bytes(16),
        PayloadError,
        "a coded payload has 16 bytes, expected fewer than the raw 16",
    ),
    "coded-huge": (
        CodecId.BUNDLE,
        bytes(1 << 20),
        PayloadError,
        "a coded payload has 1048576 bytes, expected fewer than the raw 16",
    ),
    "picture": (
        2,
        bytes(4),
        CodecError,
        "codec id 2 is a picture, expected an activation: none are answered here",
    ),
    "codec-3": (3, bytes(4), CodecError, "codec id 3 is unknown, expected one of [0, 1]"),
    "codec-negative": (-1, bytes(4), CodecError, "codec id -1 is unknown, expected one of [0, 1]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    kind, payload, error, expected = REFUSED[name]
    with pytest.raises(error) as caught:
        flat_codec(table=3).decode(kind, payload)
    assert type(caught.value) is error
    assert str(caught.value) == expected


def test_a_raw_bundle_takes_and_sends_raw_frames_only() -> None:
    codec = ActivationCodec((1, 2, 2), None)
    symbols = np.arange(4, dtype=np.uint8).reshape(1, 2, 2)

    assert codec.encode(symbols) == (CodecId.RAW, bytes([0, 1, 2, 3]))
    with pytest.raises(CodecError, match="the bundle names no coder, expected raw frames only"):
        codec.decode(CodecId.BUNDLE, b"\0")


@pytest.mark.parametrize(
    "symbols",
    [np.zeros((4, 4), np.uint8), np.zeros((1, 4, 5), np.uint8), np.zeros((1, 4, 4), np.int8)],
    ids=["rank", "shape", "dtype"],
)
def test_encoding_something_else_is_a_bug_of_the_caller(symbols: Symbols) -> None:
    with pytest.raises(ValueError, match=r"the codec is for uint8 \(1, 4, 4\)"):
        flat_codec().encode(symbols)


@pytest.mark.parametrize(
    "tables",
    [Codebook(LENGTHS[:1], np.zeros(1, np.uint16)), RansTables((coders.FLAT,), np.zeros(1, np.uint16))],
    ids=["huffman", "rans"],
)
def test_tables_for_other_channels_are_a_bug_of_the_caller(tables: Tables) -> None:
    with pytest.raises(ValueError, match=r"tables for 1 channels, the activation is \(2, 4, 4\)"):
        make_coder((2, 4, 4), tables, 1)


@pytest.mark.parametrize(("shape", "lanes"), [((2, 4, 4), 2), ((2, 4, 5), 1), ((1, 4, 4), 1)])
def test_a_context_model_for_another_shape_is_a_bug_of_the_caller(shape: Shape, lanes: int) -> None:
    with pytest.raises(ValueError, match=r"a context model for \(2, 4, 4\) and one lane, the activation is"):
        make_coder(shape, coders.context_model((2, 4, 4), 2, 9), lanes)


@pytest.mark.parametrize("lanes", [-1, 0, 3, 9])
def test_lanes_that_do_not_fit_are_a_bug_of_the_caller(lanes: int) -> None:
    with pytest.raises(ValueError, match=f"^{lanes} lanes, expected 1 … 2 for 2 channels$"):
        make_coder((2, 4, 4), Codebook(LENGTHS[:1], np.zeros(2, np.uint16)), lanes)


@given(coders.reference_coders)
def test_make_coder_takes_the_compiled_one_where_it_was_built(coder: Reference) -> None:
    made = make_coder(coder.shape, coders.tables_of(coder), coders.lane_count(coder))

    assert isinstance(made, CompiledCoder if coder_kind() == "compiled" else type(coder))


def test_the_reference_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFRAMP_CODER", "reference")
    mapped = np.zeros(1, np.uint16)

    assert coder_kind() == "reference"
    assert isinstance(make_coder((1, 4, 4), Codebook(LENGTHS[:1], mapped), 1), HuffmanCoder)
    assert isinstance(make_coder((1, 4, 4), RansTables((coders.FLAT,), mapped), 1), RansCoder)
    runs = RunTables((coders.run_table(2, 3, 0, 1, 1),), mapped, np.zeros(1, np.uint8))
    assert isinstance(make_coder((1, 4, 4), runs, 1), RunHuffmanCoder)
    assert isinstance(make_coder((1, 4, 4), coders.context_model((1, 4, 4), 2, 9), 1), ContextCoder)


def test_without_the_compiled_module_the_reference_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "_kernel", None)

    assert coder_kind() == "reference"
    coder = make_coder((1, 4, 4), Codebook(LENGTHS[:1], np.zeros(1, np.uint16)), 1)
    assert isinstance(coder, HuffmanCoder)


PROBE = """
import json, sys
import numpy as np
from offramp.common.codec import activation
from offramp.common.codec.huffman import Codebook
from offramp.common.codec.context import ContextModel
from offramp.common.codec.rans import RansTables
from offramp.common.codec.run_huffman import RunTables

kinds = {"huffman": Codebook, "run-huffman": RunTables, "rans": RansTables, "context": ContextModel}
payloads = []
for vector in json.load(open(sys.argv[1])):
    maps = [vector[name] for name in ("table_of_channel", "mode_of_channel") if name in vector]
    shape = tuple(vector["shape"])
    tables = kinds[vector["kind"]].from_bytes(bytes.fromhex(vector["tables"]), *(maps or [shape]))
    coder = activation.ActivationCodec(shape, activation.make_coder(shape, tables, vector["lanes"]))
    symbols = np.frombuffer(bytes.fromhex(vector["symbols"]), np.uint8).reshape(shape)
    payloads.append(coder.encode(symbols)[1].hex())
    assert (coder.decode(vector["codec"], bytes.fromhex(payloads[-1])) == symbols).all()
print(json.dumps({"file": activation.__file__, "kind": activation.coder_kind(), "payloads": payloads}))
"""


@pytest.fixture(scope="module")
def build_package(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Each call builds the package with this compiler, as installing it does, and returns the folder."""
    pytest.importorskip("setuptools", reason="this environment cannot build the package")

    def build(compiler: str) -> Path:
        tree = tmp_path_factory.mktemp("tree")
        ignored = shutil.ignore_patterns("*.so", "__pycache__", "node_modules")
        shutil.copytree(ROOT / "offramp", tree / "offramp", ignore=ignored)
        for file in "pyproject.toml", "README.md", "LICENSE":
            shutil.copy(ROOT / file, tree)
        command = [
            sys.executable,
            "-c",
            "from setuptools import setup; setup()",
            "-q",
            "build",
            "--build-lib",
        ]
        subprocess.run(
            [*command, str(tree / "lib")],
            cwd=tree,
            env={**os.environ, "CC": compiler, "PYTHONWARNINGS": "ignore"},
            check=True,
            capture_output=True,
            text=True,
        )
        return tree / "lib"

    return build


@pytest.mark.parametrize("compiler", ["false", "cc"])
def test_a_package_built_with_and_without_a_compiler_codes_the_same(
    compiler: str, build_package: Callable[[str], Path]
) -> None:
    if compiler != "false" and not shutil.which(compiler):
        pytest.skip("there is no C compiler here")
    library = build_package(compiler)
    golden = ROOT / "tests" / "golden" / "codec.json"
    # -S: nothing that an editable installation puts between an import and the folder just built.
    packages = sysconfig.get_paths()["purelib"]
    probe = subprocess.run(
        [sys.executable, "-S", "-c", PROBE, str(golden)],
        env={**os.environ, "PYTHONPATH": f"{library}{os.pathsep}{packages}", "OFFRAMP_CODER": ""},
        cwd=library,
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(probe.stdout)

    assert found["file"] == str(library / "offramp" / "common" / "codec" / "activation.py")
    assert found["kind"] == ("reference" if compiler == "false" else "compiled")
    assert found["payloads"] == [vector["payload"] for vector in json.loads(golden.read_bytes())]


@given(hnp.arrays(np.uint8, (2, 2, 2)))
def test_raw_payloads_are_the_symbols_in_order(symbols: Symbols) -> None:
    codec = ActivationCodec((2, 2, 2), None)

    assert codec.encode(symbols) == (CodecId.RAW, symbols.tobytes())
    assert (codec.decode(CodecId.RAW, symbols.tobytes()) == symbols).all()


class OneAtATime:
    """A coder that notices a second call while the first one runs, as scratch memory would."""

    def __init__(self) -> None:
        self.busy = False
        self.shared = False

    def encode(self, symbols: bytes, /) -> bytes:
        self.shared |= self.busy
        self.busy = True
        time.sleep(0.001)
        self.busy = False
        return symbols[:1]

    decode = encode


@pytest.mark.skipif(not coders.COMPILED, reason="needs the compiled coders")
def test_each_call_has_scratch_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[OneAtATime] = []

    def make(*_: object) -> OneAtATime:
        made.append(OneAtATime())
        return made[-1]

    monkeypatch.setattr(CompiledCoder, "_make", make)
    coder = CompiledCoder((1, 2, 2), Codebook(LENGTHS[:1], np.zeros(1, np.uint16)), 1)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda index: (coder.encode, coder.decode)[index % 2](bytes(4)), range(100)))
    assert not any(each.shared for each in made) and 2 <= len(made) <= 4


KINDS: dict[str, Tables] = {
    "huffman": Codebook(LENGTHS[[2]], np.zeros(4, np.uint16)),
    "rans": RansTables((coders.rans_table(1, 0, [(0, 0), (0, 1), (0, 2)], [128]),), np.zeros(4, np.uint16)),
    "context": coders.context_model((4, 6, 6), 2, 9),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reference", [False, True])
def test_several_threads_share_a_codec(kind: str, reference: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if reference:
        monkeypatch.setenv("OFFRAMP_CODER", "reference")
    shape = (4, 6, 6)
    coder = make_coder(shape, KINDS[kind], 1)
    rng = np.random.default_rng(5)
    frames = [rng.integers(0, 3, shape, np.uint8).tobytes() for _ in range(8)]
    payloads = [coder.encode(frame) for frame in frames]
    read = [outcome(coder, payload) for payload in payloads]
    damaged = [outcome(coder, payload[:-1]) for payload in payloads]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work(start: int) -> bool:
        right = True
        for index in range(start, start + (16 if reference else 800)):
            at = index % 8
            right &= coder.encode(frames[at]) == payloads[at] and outcome(coder, payloads[at]) == read[at]
            right &= outcome(coder, payloads[at][:-1]) == damaged[at]
        return right

    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(4)))
    finally:
        sys.setswitchinterval(before)
