"""Known inputs give known bytes: what a bundle or a device of an older release wrote is read for ever."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from offramp.common.codec.activation import ActivationCodec, CodecId, Tables, make_coder
from offramp.common.codec.context import ContextModel
from offramp.common.codec.huffman import Codebook
from offramp.common.codec.rans import Kind, RansTable, RansTables, Token
from offramp.common.codec.run_huffman import RunTable, RunTables
from offramp.common.wire.datagram import Datagrams, Reply, crc24
from offramp.common.wire.fragments import Assembler, fragment
from offramp.common.wire.frame import Frame, FrameReader, FrameWriter, check_hello, hello, parse
from offramp.common.wire.seal import DeviceKey
from offramp.v1 import inference_pb2 as pb
from tests.golden.vectors import FOLDER, files

CODEC: list[dict[str, Any]] = json.loads((FOLDER / "codec.json").read_bytes())
FRAMES: dict[str, Any] = json.loads((FOLDER / "frames.json").read_bytes())
DATAGRAMS: dict[str, Any] = json.loads((FOLDER / "datagrams.json").read_bytes())
HUFFMAN_ONE_BIT = "one-bit-a-symbol"


def by_name(vector: dict[str, Any]) -> str:
    return str(vector["name"])


@pytest.mark.parametrize("vector", CODEC, ids=by_name)
def test_codec(vector: dict[str, Any]) -> None:
    channels, height, width = vector["shape"]
    shape = (channels, height, width)
    stored, of_channel = bytes.fromhex(vector["tables"]), vector.get("table_of_channel", [])
    tables: Tables
    if vector["kind"] == "context":
        tables = ContextModel.from_bytes(stored, shape)
    elif vector["kind"] == "run-huffman":
        tables = RunTables.from_bytes(stored, of_channel, vector["mode_of_channel"])
    else:
        kind = Codebook if vector["kind"] == "huffman" else RansTables
        tables = kind.from_bytes(stored, of_channel)
    symbols = np.frombuffer(bytes.fromhex(vector["symbols"]), np.uint8).reshape(shape)
    payload = bytes.fromhex(vector["payload"])
    codec = ActivationCodec(shape, make_coder(shape, tables, vector["lanes"]))

    assert tables.to_bytes().hex() == vector["tables"]
    assert codec.encode(symbols) == (vector["codec"], payload)
    assert (codec.decode(vector["codec"], payload) == symbols).all()


def test_the_codec_vectors_cover_coded_and_raw_payloads_and_the_longest_codes() -> None:
    # A picture is no activation: tests/common/test_picture.py has its known bytes.
    assert {vector["codec"] for vector in CODEC} == set(CodecId) - {CodecId.PICTURE}
    lengths = {
        int(digit, 16) for vector in CODEC if vector["kind"] == "huffman" for digit in vector["tables"]
    }
    assert {1, 15} <= lengths


def test_a_payload_that_can_be_checked_by_eye() -> None:
    """64 symbols of one bit each, the code 0."""
    (vector,) = (vector for vector in CODEC if vector["name"] == HUFFMAN_ONE_BIT)
    assert vector["payload"] == "00" * 8


def test_an_rans_payload_that_can_be_checked_by_eye() -> None:
    """Symbol s has the 16 slots from 16·s on: it takes state 1 to s << 4 | 1, and the next adds 12 bits."""
    tables = tuple(Token(Kind.SYMBOL, 0, s, 16) for s in range(256))
    coder = make_coder((1, 1, 2), RansTables((RansTable(1, 0, tables),), np.zeros(1, np.uint16)), 1)

    assert coder.encode(bytes([0x00, 0x00])) == bytes([0x01])
    assert coder.encode(bytes([0x12, 0x00])) == bytes([0x01, 0x21])
    assert coder.encode(bytes([0x12, 0xAB])) == bytes([0x0A, 0xB1, 0x21])


def test_a_run_huffman_payload_that_can_be_checked_by_eye() -> None:
    """Codes: FULL (two modes) 0, "1 below the mode" 10, its escape 110, that behind a mode 111."""
    table = RunTable(np.array([[3, 2], [3, 0]], np.uint8), 1, 0)
    tables = RunTables((table,), np.zeros(1, np.uint16), np.array([7], np.uint8))
    coder = make_coder((1, 1, 6), tables, 1)

    assert coder.encode(bytes([7, 7, 6, 6, 7, 7])) == bytes([0b0_10_10_0_00])
    assert coder.encode(bytes([7, 7, 7, 7, 7, 7])) == bytes([0b0_0_0_00000])
    # Behind one mode, 1 below it has no token: the escape of that row, and the literal 1.
    assert coder.encode(bytes([7, 6, 7, 7, 7, 7])) == bytes([0b111_1_0_0_00])
    # 2 above the mode is folded to 4: the literal 00100.
    assert coder.encode(bytes([9, 7, 7, 7, 7, 7])) == bytes([0b110_00100, 0b0_0_0_00000])


@pytest.mark.parametrize("vector", FRAMES["streams"], ids=by_name)
def test_stream(vector: dict[str, Any]) -> None:
    writer, reader = FrameWriter(), FrameReader(64)
    for message in vector["messages"]:
        data = bytes.fromhex(message["bytes"])
        frames = [
            Frame(frame["sequence"], frame["codec"], bytes.fromhex(frame["payload"]))
            for frame in message["frames"]
        ]

        assert writer.pack(frames) == data
        assert reader.read(parse(pb.DeviceMessage, data)) == frames


def test_hello() -> None:
    digest, data = bytes.fromhex(FRAMES["hello"]["digest"]), bytes.fromhex(FRAMES["hello"]["bytes"])

    assert hello(digest) == data
    check_hello(parse(pb.DeviceMessage, data), digest)


def test_a_frame_that_can_be_checked_by_eye() -> None:
    """Field 2, 11 bytes: "payload", then CRC-32 of sequence 1, codec 0 and "payload"."""
    (vector,) = (vector for vector in FRAMES["streams"] if vector["name"] == "one-frame")
    assert vector["messages"][0]["bytes"][:-8] == "120b" + b"payload".hex()


def seal_of(vector: dict[str, Any]) -> DeviceKey | None:
    return None if vector["device"] is None else DeviceKey(bytes.fromhex(DATAGRAMS["key"]))


@pytest.mark.parametrize("vector", DATAGRAMS["requests"], ids=by_name)
def test_request(vector: dict[str, Any]) -> None:
    datagrams, key = Datagrams(bytes.fromhex(DATAGRAMS["digest"]), 10), seal_of(vector)
    data, payload = bytes.fromhex(vector["bytes"]), bytes.fromhex(vector["payload"])

    assert datagrams.request(vector["sequence"], vector["codec"], payload, vector["device"], key) == data
    read = datagrams.read_request(data, key)
    assert (read.sequence, read.codec, read.payload, read.device) == (
        vector["sequence"],
        vector["codec"],
        payload,
        vector["device"],
    )


@pytest.mark.parametrize("vector", DATAGRAMS["replies"], ids=by_name)
def test_reply(vector: dict[str, Any]) -> None:
    digest, salt = bytes.fromhex(DATAGRAMS["digest"]), bytes.fromhex(DATAGRAMS["salt"])
    datagrams, key = Datagrams(digest, vector["classes"], DATAGRAMS["parts"]), seal_of(vector)
    data, names = bytes.fromhex(vector["bytes"]), Reply.__dataclass_fields__
    reply = Reply(**{name: vector[name] for name in names})

    assert datagrams.reply(reply, vector["device"], key, salt) == data
    read = datagrams.read_reply(data, vector["sequence"], vector["device"], key)
    assert abs(read.confidence - reply.confidence) <= 1 / 510
    assert all(getattr(read, name) == vector[name] for name in names if name != "confidence")


def test_pieces() -> None:
    vector = DATAGRAMS["fragments"]
    whole, assembler = bytes.fromhex(vector["bytes"]), Assembler()
    pieces = [bytes.fromhex(piece) for piece in vector["pieces"]]

    assert fragment(whole, vector["size"], whole[3]) == pieces
    assert [assembler.add("", piece, 0) for piece in pieces] == [None, None, whole]


def test_a_request_that_can_be_checked_by_eye() -> None:
    """Version 1, the bundle's codec; digest 00 01; sequence 1; "payload"; CRC-24 of digest and all of it."""
    data = bytes.fromhex(DATAGRAMS["requests"][0]["bytes"])
    assert crc24(b"123456789") == 0x21CF02  # as catalogues of CRCs have it
    assert data[:-3] == b"\x20" + b"\x00\x01" + b"\x01\x00" + b"payload"
    assert data[-3:] == crc24(bytes(range(32)) + data[:-3]).to_bytes(3, "big")


def test_the_stored_files_are_those_that_would_be_written() -> None:
    for name, text in files().items():
        assert (FOLDER / name).read_text() == text, f"{name} differs; see regenerate.py"
