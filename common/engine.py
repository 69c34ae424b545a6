"""Running a graph: ONNX Runtime behind two typed calls, one for each half of the network."""

from __future__ import annotations

import platform
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import offramp.common.telemetry  # noqa: F401 - before onnxruntime, whose telemetry it turns off
from offramp.common.bundle import HEAD, TAIL, Bundle
from offramp.common.cpus import require_threads
from offramp.common.errors import BundleError, printable

if TYPE_CHECKING:
    import onnxruntime

MEMORY_BYTES = 2 << 30
"""What all graphs of a process may hold in tensors. A graph of a few nodes can ask for any amount."""

_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}
Port = tuple[str, tuple[int, ...]]
"""ONNX type of an input or output, and its shape without the batch dimension."""
Ports = dict[str, Port]
"""Inputs or outputs by name."""


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float32]:
    """Class probabilities, float32 [N, K], of logits [N, K] divided by the temperature."""
    scaled = logits / np.float32(temperature)
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float32)


@cache
def _limit_memory() -> None:
    """Give ONNX Runtime one arena of at most ``MEMORY_BYTES`` for all sessions; once in a process."""
    import onnxruntime as ort

    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    # Extended by what is asked for: to double each time would pass the limit early.
    arena = ort.OrtArenaCfg({"max_mem": MEMORY_BYTES, "arena_extend_strategy": 1})
    ort.create_and_register_allocator(info, arena)


def saturates(machine: str, cpuinfo: str) -> bool:
    """Whether this CPU would saturate sums of uint8 times int8: x86 without VNNI, by its /proc/cpuinfo."""
    if machine.lower() not in ("x86_64", "amd64"):
        return False
    flags = next((line.split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])
    return not {"avx512_vnni", "avx_vnni"} & set(flags)


@cache
def _must_be_exact() -> bool:
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        cpuinfo = ""  # not Linux: slow and right rather than fast and perhaps wrong
    return saturates(platform.machine(), cpuinfo)


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """How every graph runs, here and where a bundle is measured: on so many threads, with the same sums."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Threads that spin between two small graphs would take the core from the rest of the process.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if _must_be_exact():
        # It halves the speed, also where it is not needed.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def session(graph: bytes | str, *, threads: int) -> onnxruntime.InferenceSession:
    """A graph of our own making, its bytes or its file, run as the product runs one from outside."""
    import onnxruntime as ort

    require_threads(threads - 1)
    return ort.InferenceSession(graph, session_options(threads), providers=["CPUExecutionProvider"])


class _Graph:
    """One ONNX graph, checked against what the manifest promises, on a fixed number of threads."""

    def __init__(self, name: str, data: bytes, threads: int, inputs: Ports, outputs: Ports) -> None:
        # Imported here: it takes 0.1 s, and `--help` does not need it.
        import onnxruntime as ort

        _limit_memory()
        require_threads(threads - 1)
        options = session_options(threads)
        options.add_session_config_entry("session.use_env_allocators", "1")
        # Bytes can be ONNX and ONNX Runtime's own format at once. What `check_graph` read is what runs.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        try:
            self._session = ort.InferenceSession(
                data,
                options,
                providers=["CPUExecutionProvider"],
                # Its fallback would try the same again, and print to stdout.
                enable_fallback=False,
                # Constants are folded outside the arena, without a limit; in a QDQ graph it saves nothing.
                disabled_optimizers=["ConstantFolding"],
            )
        except Exception as error:  # ONNX Runtime has no common base class for its errors
            raise BundleError(f"{name}: ONNX Runtime refuses it: {_first_line(error)}") from None
        _check_ports(name, "input", self._session.get_inputs(), inputs)
        _check_ports(name, "output", self._session.get_outputs(), outputs)
        self._input, self._outputs = next(iter(inputs)), list(outputs)
        kind, shape = inputs[self._input]
        # Shapes inside the graph show only when it runs: better here than at the first image. Two images,
        # because a graph that takes one at a time would fail at the first batch.
        try:
            results = self.run(np.zeros((2, *shape), _TYPES[kind]))
        except Exception as error:
            raise BundleError(f"{name}: does not run: {_first_line(error)}") from None
        for result, (port, (_, wanted)) in zip(results, outputs.items(), strict=True):
            if result.shape != (2, *wanted):
                raise BundleError(f"{name}: output '{port}' is {result.shape}, expected {(2, *wanted)}")
            if not np.isfinite(result).all():
                raise BundleError(f"{name}: output '{port}' is not finite, expected numbers")

    def run(self, batch: NDArray[np.uint8]) -> list[NDArray[np.generic]]:
        return list(self._session.run(self._outputs, {self._input: batch}))


def _check_ports(name: str, side: str, found: list[onnxruntime.NodeArg], wanted: Ports) -> None:
    try:
        have = {port.name: (port.type, tuple(port.shape[1:])) for port in found}
    except UnicodeDecodeError:
        raise BundleError(f"{name}: its {side}s have names that are no text, expected {wanted}") from None
    if have != wanted:
        raise BundleError(f"{name}: its {side}s are {printable(str(have), 300)}, the manifest says {wanted}")


def _first_line(error: Exception) -> str:
    # It repeats names from the graph, so it may hold anything.
    lines = str(error).strip().splitlines()
    return printable(lines[0], 300) if lines else type(error).__name__


class Engine:
    """Both halves of a bundle. Each graph is loaded at its first use, or by ``load_head``/``load_tail``.

    threads: how many threads one call uses inside ONNX Runtime.
    """

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self._bundle = bundle
        self._threads = threads
        manifest = bundle.manifest
        image = manifest.preprocessing
        self._image: Port = ("tensor(uint8)", (3, image.height, image.width))
        self._symbols: Port = ("tensor(uint8)", manifest.activation.shape)
        self._logits: Port = ("tensor(float)", (len(manifest.classes),))

    @cached_property
    def _head(self) -> _Graph:
        outputs = {"symbols": self._symbols, "logits": self._logits}
        return _Graph(HEAD, self._bundle.head, self._threads, {"image": self._image}, outputs)

    @cached_property
    def _tail(self) -> _Graph:
        inputs = {"symbols": self._symbols}
        return _Graph(TAIL, self._bundle.tail, self._threads, inputs, {"logits": self._logits})

    def load_head(self) -> None:
        """Load the head now. Raises BundleError if it is not what the manifest says."""
        _ = self._head

    def load_tail(self) -> None:
        """Load the tail now. Raises BundleError if it is not what the manifest says."""
        _ = self._tail

    def head(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Images, uint8 [N, 3, H, W] → symbols, uint8 [N, C, h, w], and probabilities, float32 [N, K]."""
        symbols, logits = self._head.run(images)
        probabilities = softmax(logits.astype(np.float32, copy=False), self._bundle.manifest.temperature)
        return symbols.astype(np.uint8, copy=False), probabilities

    def tail(self, symbols: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Symbols, uint8 [N, C, h, w] → class probabilities, float32 [N, K]."""
        (logits,) = self._tail.run(symbols)
        return softmax(logits.astype(np.float32, copy=False))
