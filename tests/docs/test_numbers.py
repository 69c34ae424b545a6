"""Numbers of the code that a document, a help text or a docstring states are the code's.

PHRASES has each sentence as it has to stand, made from the constant. One that a document words otherwise is
changed here too; a number that a document states for the first time gets its phrase. Defaults in help texts
are compared for every option of ``offramp``; generated tables are compared by test_tables.py.
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from offramp.bench.answers import head_answers, tail_answers
from offramp.bench.bench import BENCHMARKS
from offramp.bench.labels import labels_of, open_picture
from offramp.cli import demo
from offramp.cli.app import COMMANDS
from offramp.cli.app import EPILOG as TOOL
from offramp.common import tracing
from offramp.common.arguments import Parser
from offramp.common.bundle.load import load_bundle
from offramp.common.codec import context, huffman, lanes, rans, run_huffman
from offramp.common.codec.activation import CodecId
from offramp.common.errors import ExitCode
from offramp.common.inputs.pictures import to_input
from offramp.common.part import session
from offramp.common.part.engine import Engine
from offramp.common.wire import datagram, fragments, frame, picture, transport
from offramp.device import app, totals
from offramp.gateway import broker, gateway, window
from offramp.link import backoff, datagram_numbers, mqtt, security, wire_bytes
from offramp.server import account, descriptors, plan, stream_age
from offramp.server import app as server_app
from offramp.server import security as server_security

training = pytest.importorskip("offramp.training.calibrate.codebook")

ROOT = Path(__file__).parents[2]


def power(value: int) -> str:
    """2²⁰ for 1048576."""
    digits = str(value.bit_length() - 1).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    assert value == 1 << (value.bit_length() - 1)
    return f"2{digits}"


def stated(file: str, pattern: str, phrase: str, unit: float = 1) -> str:
    """The phrase with what a file of deploy/ says, in these units: those files import what is not there."""
    match = re.search(pattern, (ROOT / "deploy" / file).read_text(), re.MULTILINE)
    assert match is not None, f"deploy/{file}: has no {pattern}"
    return phrase.format(int(match[1]) / unit)


SERVER, DEVICE = "docs/reference/cloud-server.md", "docs/reference/edge-device.md"
GATEWAY, NARROW = "docs/reference/gateway.md", "docs/how-to/narrow-links.md"
WIRE, CODEC = "docs/reference/wire-format.md", "docs/reference/codec.md"
DEPLOY, SCALE_OUT, SECURE = "docs/how-to/deploy.md", "docs/how-to/scale-out.md", "docs/how-to/secure.md"
FLEET = "docs/how-to/watch-a-fleet.md"
DEMO = "docs/tutorials/first-demo.md"
PHRASES = [
    (DEVICE, f"attempts go on, {backoff.BACKOFF_FIRST:g} … {backoff.BACKOFF_MOST:g} s apart"),
    (DEVICE, f"all of them up to {totals.LATENCIES:,}, then"),
    (SCALE_OUT, f"the latencies of {totals.LATENCIES:,} images"),
    (SERVER, f"more connections than streams + {descriptors.SPARE_CONNECTIONS} |"),
    (SERVER, f"not read further at {account.REPLIES_WAITING:,} waiting replies"),
    (SCALE_OUT, f"`--message-bytes` and {account.REPLIES_WAITING:,} replies for each stream"),
    (SERVER, f"{transport.HANDSHAKE_MS / 1000:g} s for TCP, TLS and HTTP/2"),
    (SERVER, f"closed after {transport.CONNECTION_IDLE_MS / 60_000:g} minutes"),
    (SERVER, f"within {(transport.KEEPALIVE_MS + transport.KEEPALIVE_TIMEOUT_MS) / 1000:g} s"),
    (SCALE_OUT, f"it is at least {plan.LAYOUT_GAIN - 1:.0%} faster".replace("%", " %")),
    (SCALE_OUT, f"reaches {plan.SATURATED:.0%} of the best throughput".replace("%", " %")),
    (SCALE_OUT, f"({plan.BATCH_SECONDS * 1e3:g} ms) included"),
    (SCALE_OUT, f"nothing below {plan.TIMER_SECONDS * 1e3:g} ms"),
    (SCALE_OUT, f"where that takes less than {plan.INLINE_SECONDS * 1e3:g} ms"),
    (SECURE, f"to {security.TOKEN_BYTES:,} visible ASCII characters"),
    (FLEET, f"waits {tracing.FLUSH_SECONDS:g} s at most for the last spans"),
    (FLEET, f"W3C trace context, {tracing.CONTEXT_BYTES + 2} bytes"),
    (SCALE_OUT, f"{session.MEMORY_BYTES >> 30} GiB at most, in one arena"),
    (WIRE, f"W3C trace context in {tracing.CONTEXT_BYTES} bytes"),
    (WIRE, f"`traces`, with `--otel` | {tracing.CONTEXT_BYTES + 2} a sampled frame"),
    (WIRE, f"pings every {transport.KEEPALIVE_MS // 1000} s"),
    (WIRE, f", {transport.KEEPALIVE_TIMEOUT_MS // 1000} s to answer them"),
    (WIRE, f"`protocol_version` is {frame.PROTOCOL_VERSION}."),
    (WIRE, f"gRPC's prefix ({frame.GRPC_PREFIX_BYTES} B)"),
    (WIRE, f"CRC-32 {frame.CHECKSUM_BYTES})"),
    (WIRE, f"P bytes of payload: P + {datagram.OVERHEAD} bytes"),
    (WIRE, f"**Request, authenticated**: P + {datagram.SEALED_OVERHEAD} bytes"),
    (WIRE, f"At most {fragments.MOST_PIECES} pieces"),
    (WIRE, f"the highest one less {window.WINDOW}"),
    (WIRE, f"the next multiple of {datagram_numbers.BLOCK}"),
    (NARROW, f"of {datagram.OVERHEAD} bytes more than its code, {datagram.SEALED_OVERHEAD} with a key"),
    (GATEWAY, f"or over {window.WINDOW} below its highest one"),
    (GATEWAY, f"of the last {gateway.RECENT_MOST:,} requests"),
    (GATEWAY, f"without 1 … {broker.CORRELATION_MOST} bytes of correlation data"),
    (DEVICE, f"{mqtt.RECONNECT_SECONDS[0]} … {mqtt.RECONNECT_SECONDS[1]} s apart |"),
    (WIRE, f"(usually {wire_bytes.HEADER_BYTES} bytes a segment)"),
    (CODEC, f"| {CodecId.BUNDLE:d} `BUNDLE` |"),
    (CODEC, f"| {CodecId.RAW:d} `RAW` |"),
    (CODEC, f"| {CodecId.PICTURE:d} `PICTURE` |"),
    (CODEC, f"saves {training.RANS_GAIN:.0%} of the bytes or more".replace("%", " %")),
    (CODEC, f"another {training.CONTEXT_GAIN:.0%} (".replace("%", " %")),
    (CODEC, f"at most {power(training.CONTEXT_WORK)} steps"),
    (CODEC, f"is 1 … {lanes.MAX_LANES} and at most C"),
    (CODEC, f"A table is {huffman.SYMBOLS} code lengths of 1 … {huffman.MAX_CODE_LENGTH} bits"),
    (CODEC, f"Stored: {huffman.TABLE_BYTES} bytes a table"),
    (CODEC, f"A table has R *runs* (1 … {run_huffman.MAX_RUNS}), *columns*"),
    (CODEC, f"an order (0 … {run_huffman.MAX_ORDER}) and"),
    (CODEC, f"| runs R, 1 … {run_huffman.MAX_RUNS} |"),
    (CODEC, f"| order, 0 … {run_huffman.MAX_ORDER} |"),
    (CODEC, f"number of *runs* R (1 … {rans.MAX_RUNS}) and up to {rans.SYMBOLS} tokens"),
    (CODEC, f"| runs R, 1 … {rans.MAX_RUNS} |"),
    (CODEC, f"they sum to {rans.TOTAL}."),
    (CODEC, f"*reach* R (1 … {context.MAX_REACH})"),
    (CODEC, f"its mode, −{context.NEAR} … {context.NEAR}, and"),
    ("server/settings.py", f"measured to be as fast as any, up to {plan.BATCH_MAX})"),
    ("server/settings.py", f"age, give or take {stream_age.AGE_JITTER * 100:g} %"),
    (SECURE, f"one a line, {server_security.TOKEN_CHARACTERS.start} to"),
    (WIRE, f"{picture.LEFT_OUT} or {picture.LEFT_OUT + 1} bytes shorter than its WebP file"),
    (WIRE, f"| message on the stream | {frame.ENVELOPE_BYTES} (gRPC {frame.GRPC_PREFIX_BYTES},"),
    (WIRE, f"HTTP/2 DATA header ({frame.HTTP2_FRAME_BYTES} B)"),
    (DEPLOY, stated("systemd/edge-device.service", r"^WatchdogSec=(\d+)", "{:g} seconds without that")),
    (DEPLOY, stated("systemd/edge-device.service", r"^MemoryMax=(\d+)M$", "may take {:g} MB")),
    (DEPLOY, stated("containers/Dockerfile", r"--timeout=(\d+)s", "may now take {:g}.")),
    (DEPLOY, stated("kubernetes/deployment.yaml", r'STREAM_AGE, value: "(\d+)"', "({:g} minutes here,", 60)),
    (DEPLOY, f"minutes here, give or take {stream_age.AGE_JITTER * 100:g} %)"),
    (SCALE_OUT, stated("ray/app.py", r"^CALLS = (\d+)$", "on their way (default {:g})")),
    (SCALE_OUT, stated("ray/app.py", r"^MAX_BATCH = (\d+)$", "is not measured (default {:g})")),
    (SCALE_OUT, stated("ray/app.py", r"^BUSY_MS = (\d+)$", "becomes it, {:g} ms |")),
]  # fmt: skip
"""File and what has to stand in it, whatever its line breaks."""


@pytest.mark.parametrize(("file", "phrase"), PHRASES)
def test_a_document_states_the_code_s_number(file: str, phrase: str) -> None:
    text = " ".join((ROOT / file).read_text().split())

    assert phrase in text, f"{file}: expected {phrase!r}, as the code has it"


def test_the_demo_s_table_is_what_the_bundle_answers() -> None:
    """Accuracy, exit rate and payload at each T_c, on the same photos."""
    text = (ROOT / DEMO).read_text()
    shown = {
        float(row[0]): row[1:]
        for row in re.findall(r"^  T_c = (\S+) +(\S+)% +(\S+)% +(\S+) +\S+$", text, re.M)
    }
    bundle = load_bundle(ROOT / demo.SHIPPED)
    engine, manifest = Engine(bundle), bundle.manifest
    photos = ROOT / "examples" / "trashnet"
    labels = labels_of(photos, list(manifest.classes))
    inputs = np.stack([to_input(open_picture(photos / name), manifest.preprocessing) for name in labels])
    symbols, early = head_answers(engine, inputs)
    replies = tail_answers(engine, symbols).answers(early, manifest.sent_answer)
    sizes = np.array([len(bundle.codec.encode(each)[1]) for each in symbols])
    truth = np.array([manifest.classes.index(label) for label in labels.values()])

    for at in (*demo.THRESHOLDS, manifest.threshold):
        exits = early.max(axis=1) > at
        right = float((np.where(exits, early.argmax(axis=1), replies) == truth).mean())
        size = float(np.where(exits, 0, sizes).mean())
        assert shown[at] == (f"{100 * right:.2f}", f"{100 * exits.mean():.1f}", f"{size:.1f}")
    assert len(shown) == len(demo.THRESHOLDS) + 1


@pytest.mark.parametrize("text", [app.EPILOG, server_app.EPILOG, TOOL], ids=["device", "server", "tool"])
def test_exit_statuses_of_a_help_text_exist(text: str) -> None:
    stated = {int(number) for number in re.findall(r"[:,]\s+(\d+) [a-z]", text.partition("exit status")[2])}

    assert {0, 1, 2} <= stated <= {int(code) for code in ExitCode}


class Found(BaseException):
    """Carries a program's parser out of it."""


def parsers() -> Iterator[argparse.ArgumentParser]:
    """Every parser of ``offramp`` and research/; the two programs' flags are settings, compared by a test."""
    commands: list[tuple[str, list[str]]] = [
        *((command.module, []) for name, command in COMMANDS.items() if name != "bench"),
        *((module, []) for module, _ in BENCHMARKS.values()),
        *((f"research.{name}", []) for name in ("links.link", "links.steering", "heads.bench_head")),
        *((f"research.{name}.__main__", []) for name in ("paper", "pareto")),
    ]

    def give(self: Parser, *_: Any) -> Any:
        raise Found(self)

    for module, arguments in commands:
        main: Callable[[list[str]], int] = importlib.import_module(module).main
        try:
            with patch.object(Parser, "parse_args", give):
                main(arguments)
        except Found as found:
            yield found.args[0]
        else:
            raise AssertionError(f"{module} reads its arguments otherwise")


def leaves(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from leaves(each)
        else:
            yield parser.prog, action


def test_a_default_that_a_help_text_states_is_the_default() -> None:
    for needed in ("constriction", "lz4", "matplotlib", "zstandard"):
        pytest.importorskip(needed)
    stated = 0
    for prog, action in (each for parser in parsers() for each in leaves(parser)):
        match = re.search(r"default: ([\d.,]*\d)(?![\d/])(?: (k|M)bit/s)?", action.help or "")
        # `offramp split` has its defaults in its table of fields, whose help texts are made of them.
        if (
            match is None
            or action.default in (None, argparse.SUPPRESS)
            or isinstance(action.default, list | tuple)
        ):
            continue
        value = float(match[1].replace(",", "")) * {"k": 1e3, "M": 1e6}.get(match[2], 1)
        stated += 1
        assert value == float(action.default), f"{prog} {action.dest}: {action.help}, is {action.default}"
    assert stated >= 10
