"""How the golden vectors are made: known inputs, and the bytes that this release makes of them.

The inputs are written out as arithmetic on integers: no generator whose numbers could change.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.common.codec.activation import ActivationCodec, CodecId, Symbols, Tables, make_coder
from offramp.common.codec.context import ContextModel
from offramp.common.codec.huffman import SYMBOLS, Codebook, build_codebook, package_merge
from offramp.common.codec.rans import TOTAL, Kind, RansTable, RansTables, Token
from offramp.common.codec.run_huffman import RunTable, RunTables
from offramp.common.wire.datagram import Datagrams, Reply, ReplyError, Seal
from offramp.common.wire.fragments import fragment
from offramp.common.wire.frame import Frame, FrameWriter, hello
from offramp.common.wire.seal import DeviceKey

FOLDER = Path(__file__).parent


def counts(channels: int, steepness: int) -> NDArray[np.int64]:
    """Calibration counts, int64 [C, 256]: falling from symbol 3c on, faster the steeper."""
    symbols = np.arange(SYMBOLS)
    rows = [10**6 // (1 + ((symbols - 3 * c) % SYMBOLS) ** steepness) for c in range(channels)]
    return np.stack(rows).astype(np.int64)


def activation(shape: tuple[int, int, int], spread: int) -> Symbols:
    """Symbols, uint8 [C, H, W]: a few that are likely in each channel, and one large one in each 11."""
    index = np.arange(int(np.prod(shape))).reshape(shape)
    channel = np.arange(shape[0])[:, None, None]
    likely = 3 * channel + (index * index) % spread
    return np.where(index % 11 == 10, (index * 37) % SYMBOLS, likely % SYMBOLS).astype(np.uint8)


def codec_vector(name: str, tables: Tables, symbols: Symbols, lanes: int = 1) -> dict[str, Any]:
    """One activation and its payload."""
    shape = (symbols.shape[0], symbols.shape[1], symbols.shape[2])
    codec, payload = ActivationCodec(shape, make_coder(shape, tables, lanes)).encode(symbols)
    kinds = {Codebook: "huffman", RunTables: "run-huffman", RansTables: "rans", ContextModel: "context"}
    modes = {"mode_of_channel": tables.mode_of_channel.tolist()} if isinstance(tables, RunTables) else {}
    return {
        "name": name,
        "shape": list(shape),
        "kind": kinds[type(tables)],
        "lanes": lanes,
        **modes,
        "tables": tables.to_bytes().hex(),
        **(
            {} if isinstance(tables, ContextModel) else {"table_of_channel": tables.table_of_channel.tolist()}
        ),
        "symbols": symbols.tobytes().hex(),
        "codec": int(codec),
        "payload": payload.hex(),
    }


def codec_vectors() -> list[dict[str, Any]]:
    """One table, a table for each channel, shared tables, the longest codes, the escape to raw."""
    shape = (3, 4, 5)
    tensor, channel = build_codebook(counts(3, 2), "tensor"), build_codebook(counts(3, 2), "channel")
    shared = Codebook(channel.lengths[:2], np.array([1, 0, 1], np.uint16))
    steep = build_codebook(counts(1, 5), "tensor")
    every = np.arange(SYMBOLS, dtype=np.uint8).reshape(1, 16, 16)
    return [
        codec_vector("tensor", tensor, activation(shape, 5)),
        codec_vector("channel", channel, activation(shape, 5)),
        codec_vector("shared-tables", shared, activation(shape, 5)),
        codec_vector("one-bit-a-symbol", steep, np.zeros((1, 8, 8), np.uint8)),
        codec_vector("longest-codes", steep, np.where(every < 240, 0, every).astype(np.uint8)),
        codec_vector("escape-to-raw", steep, every),
        codec_vector("one-symbol", steep, np.full((1, 1, 1), 200, np.uint8)),
        codec_vector("three-lanes", channel, activation(shape, 5), 3),
        *rans_vectors(),
        *four_lane_vectors(),
        *run_huffman_vectors(),
        *context_vectors(),
    ]


def context_vectors() -> list[dict[str, Any]]:
    """A few levels, escapes, a constant, and what is sent raw."""
    shape = (3, 4, 5)
    index = np.arange(60).reshape(shape)
    weights = np.arange(3 * 2 * 2 * 15).reshape(3, 2, 2, 15) * 37 % 41 - 20
    for channel in range(3):
        weights[channel, :, :, 12 + channel :] = 0
    model = ContextModel(
        shape,
        np.array([50, 3, 200], np.uint8),
        (np.arange(3 * 6).reshape(3, 6) * -29 % 64 - 32 * (np.arange(6) + 1) // 2).astype("<i2"),
        (np.arange(24).reshape(3, 4, 2) * 11 % 17 - 8).astype(np.int8),
        (np.arange(30).reshape(3, 5, 2) * 7 % 13 - 6).astype(np.int8),
        weights.astype(np.int8),
    )
    few = model.mode[:, None, None] + (index * index) % 5 - 2
    escapes = np.where(index % 9 == 8, (index * 37) % SYMBOLS, model.mode[:, None, None])
    constant = np.broadcast_to(model.mode[:, None, None], shape)
    return [
        codec_vector("context-few-levels", model, few.astype(np.uint8)),
        codec_vector("context-escapes", model, escapes.astype(np.uint8)),
        codec_vector("context-constant", model, constant.astype(np.uint8)),
        codec_vector("context-escape-to-raw", model, activation(shape, 5)),
    ]


def rans_table(runs: int, mode: int, symbols: list[int]) -> RansTable:
    """A table with these symbols behind each run; the first token takes what frequency is left."""
    tokens = [Token(Kind.SYMBOL, run, s, 1 + 200 // (run + 1)) for run in range(runs) for s in symbols]
    tokens += [Token(Kind.ESCAPE, run, 0, 3) for run in range(runs)]
    if runs > 1:
        tokens.append(Token(Kind.FULL, runs - 1, mode, 5))
    rest = TOTAL - sum(token.frequency for token in tokens)
    tokens[0] = tokens[0]._replace(frequency=tokens[0].frequency + rest)
    return RansTable(runs, mode, tuple(tokens))


def rans_vectors() -> list[dict[str, Any]]:
    """Without runs, with runs and escapes, one lane and three, a lane of no more than its state."""
    shape = (3, 4, 5)
    index = np.arange(60).reshape(shape)
    sparse = np.where(index % 7 == 6, 50 + index % 5, 50).astype(np.uint8)
    plain, runs = rans_table(1, 0, [0, 1, 3, 4, 6, 7]), rans_table(4, 50, [51, 52, 54])
    mixed = RansTables((plain, runs), np.array([0, 1, 0], np.uint16))
    only_runs = RansTables((runs,), np.zeros(3, np.uint16))
    return [
        codec_vector("rans-plain", RansTables((plain,), np.zeros(3, np.uint16)), activation(shape, 5)),
        codec_vector("rans-runs", only_runs, sparse),
        codec_vector("rans-mixed-tables", mixed, np.where(index % 3 == 0, sparse, 3).astype(np.uint8)),
        codec_vector("rans-three-lanes", only_runs, sparse, 3),
        codec_vector("rans-short-lane", only_runs, np.full(shape, 50, np.uint8)),
        codec_vector("rans-escape-to-raw", only_runs, activation(shape, 5)),
    ]


def four_lane_vectors() -> list[dict[str, Any]]:
    """Activations large enough for the compiled coders' loops over four lanes, and for lanes beside them."""
    shape = (7, 6, 9)
    index = np.arange(7 * 6 * 9).reshape(shape)
    sparse = np.where(index % 7 == 6, 50 + index % 5, 50)
    mixed = np.where(index % 5 == 0, (index * index) % 8, sparse).astype(np.uint8)
    plain, runs = rans_table(1, 0, [0, 1, 4, 50, 51, 52]), rans_table(8, 50, [0, 1, 4, 51])
    rans = RansTables((plain, runs), np.array([0, 1, 1, 0, 1, 1, 0], np.uint16))
    few = np.where(index % 3 == 0, 3 * (index // 54), 0)
    book = Codebook(build_codebook(counts(1, 2), "tensor").lengths, np.zeros(7, np.uint16))
    every = tuple(Token(Kind.SYMBOL, 0, s, TOTAL - 255 * 4 if s == 50 else 4) for s in range(SYMBOLS))
    return [
        codec_vector("four-lanes", book, few.astype(np.uint8), 4),
        codec_vector("seven-lanes", book, few.astype(np.uint8), 7),
        codec_vector("rans-four-lanes", rans, mixed, 4),
        codec_vector("rans-six-lanes", rans, mixed, 6),
        codec_vector(
            "rans-256-tokens", RansTables((RansTable(1, 0, every),), np.zeros(7, np.uint16)), mixed, 4
        ),
    ]


def run_table(runs: int, columns: int, order: int) -> RunTable:
    """A table in which short runs and small symbols are likely, and two of three pairs have a token."""
    cells = [
        (10**6 if z else 10) // (1 + run * run + z * z) + 1
        for run in range(runs)
        for z in range(columns)
        if z == 0 or runs == 1 or (run + z) % 3
    ]
    kept = [z == 0 or runs == 1 or (run + z) % 3 > 0 for run in range(runs) for z in range(columns)]
    found = package_merge(cells + ([10**5] if runs > 1 else []))
    lengths = np.zeros(runs * columns, np.uint8)
    lengths[np.array(kept)] = found[: len(cells)]
    return RunTable(lengths.reshape(runs, columns), int(found[-1]) if runs > 1 else 0, order)


def run_huffman_vectors() -> list[dict[str, Any]]:
    """Without runs and with few and the most; escapes, full runs, modes that differ; lanes side by side."""
    plain, runs, most = run_table(1, SYMBOLS, 0), run_table(4, 9, 2), run_table(64, 3, 0)
    shape = (7, 6, 9)
    modes = np.array([50, 0, 255, 128, 50, 3, 50], np.uint8)
    index = np.arange(7 * 6 * 9).reshape(shape)
    near = np.where(index % 5 == 0, (index * index) % 8, index % 2)
    sparse = np.where(index % 31 == 30, 1 + index % 5, 0)
    mixed = np.where((np.arange(7) % 2)[:, None, None] == 0, sparse, near)
    escapes = np.where(index % 29 == 7, (index * 37) % SYMBOLS, sparse)

    def vector(name: str, of: list[int], distance: NDArray[np.int64], lanes: int = 1) -> dict[str, Any]:
        tables = RunTables((plain, runs, most), np.array(of, np.uint16), modes)
        symbols = ((distance + modes[:, None, None]) % SYMBOLS).astype(np.uint8)
        return codec_vector(f"run-huffman-{name}", tables, symbols, lanes)

    every = np.arange(7 * 6 * 9).reshape(shape) * 101
    return [
        vector("plain", [0] * 7, near),
        vector("runs", [1] * 7, sparse),
        vector("most-runs", [2] * 7, sparse),
        vector("escapes", [1] * 7, escapes),
        vector("only-modes", [2] * 7, 0 * index),
        vector("mixed-tables", [2, 0, 2, 1, 2, 0, 1], mixed),
        vector("four-lanes", [2, 0, 2, 1, 2, 0, 1], mixed, 4),
        vector("seven-lanes", [1, 0, 1, 0, 1, 0, 1], mixed, 7),
        vector("escape-to-raw", [1] * 7, every),
    ]


def stream_vectors() -> list[dict[str, Any]]:
    """Messages of one stream each, as a device writes them."""
    coded, raw = CodecId.BUNDLE, CodecId.RAW
    streams = {
        "one-frame": [[Frame(1, coded, b"payload")]],
        "three-frames-with-a-raw-one": [
            [Frame(1, coded, b"first"), Frame(2, raw, bytes(range(16))), Frame(3, coded, b"third")]
        ],
        "following-messages": [[Frame(1, coded, b"a"), Frame(2, coded, b"b")], [Frame(3, coded, b"c")]],
        "resumed-after-a-gap": [[Frame(1, coded, b"a")], [Frame(5, coded, b"b")], [Frame(6, coded, b"c")]],
        "resumed-stream": [[Frame(300, coded, b"after a reconnect")], [Frame(301, raw, b"next")]],
        "large-frame": [[Frame(1, coded, bytes(200))]],
        "a-picture-after-an-activation": [
            [Frame(1, coded, b"first"), Frame(2, coded, b"second")],
            [Frame(3, CodecId.PICTURE, b"tag and data"), Frame(4, coded, b"fourth")],
        ],
    }
    vectors = []
    for name, messages in streams.items():
        writer = FrameWriter()
        vectors.append(
            {
                "name": name,
                "messages": [
                    {
                        "frames": [
                            {"sequence": f.sequence, "codec": int(f.codec), "payload": f.payload.hex()}
                            for f in frames
                        ],
                        "bytes": writer.pack(frames).hex(),
                    }
                    for frames in messages
                ],
            }
        )
    return vectors


def hello_vector() -> dict[str, str]:
    """The first message of a stream for a bundle whose digest is 00 01 … 1f."""
    digest = bytes(range(32))
    return {"digest": digest.hex(), "bytes": hello(digest).hex()}


def datagram_vectors() -> dict[str, Any]:
    """Requests and replies with and without a key, of a bundle whose digest is 00 01 … 1f; and pieces."""
    digest, key = bytes(range(32)), bytes(range(16, 32))
    sides: list[tuple[str, int | None, Seal | None]] = [
        ("plain", None, None),
        ("sealed", 513, DeviceKey(key)),
    ]
    requests, replies = [], []
    for name, device, seal in sides:
        for codec, sequence, payload in ((0, 1, b"payload"), (1, 65_535, bytes(range(64))), (0, 0, b"\x80")):
            sequence += 0 if seal is None else 1 << 24
            data = Datagrams(digest, 10).request(sequence, codec, payload, device, seal)
            requests.append(
                {
                    "name": f"{name}-{codec}-{len(payload)}",
                    "device": device,
                    "sequence": sequence,
                    "codec": codec,
                    "payload": payload.hex(),
                    "bytes": data.hex(),
                }
            )
        for classes, reply in (
            (10, Reply(258, 7, 0.5)),
            (10, Reply(65_535, 9, 1.0, part=2, fallback=True)),
            (1000, Reply(0, 999, 0.0)),
            (1000, Reply(3, 256, 0.25, part=1)),
            (10, Reply(4, error=ReplyError.OVERLOADED)),
        ):
            data = Datagrams(digest, classes, 3).reply(reply, device, seal, b"\x5a\xa5")
            replies.append(
                {
                    "name": f"{name}-{reply.sequence}",
                    "device": device,
                    "classes": classes,
                    "sequence": reply.sequence,
                    "class_index": reply.class_index,
                    "confidence": reply.confidence,
                    "part": reply.part,
                    "fallback": reply.fallback,
                    "error": int(reply.error),
                    "bytes": data.hex(),
                }
            )
    whole = Datagrams(digest, 10).request(300, 0, bytes(range(40)))
    pieces = [piece.hex() for piece in fragment(whole, 20, 300 & 0xFF)]
    return {
        "digest": digest.hex(),
        "key": key.hex(),
        "parts": 3,
        "salt": "5aa5",
        "requests": requests,
        "replies": replies,
        "fragments": {"bytes": whole.hex(), "size": 20, "pieces": pieces},
    }


def files() -> dict[str, str]:
    """Contents of the stored files."""
    contents = {
        "codec.json": codec_vectors(),
        "frames.json": {"hello": hello_vector(), "streams": stream_vectors()},
        "datagrams.json": datagram_vectors(),
    }
    return {name: json.dumps(value, indent=1) + "\n" for name, value in contents.items()}
