"""One ONNX graph in ONNX Runtime: how it is loaded and run, the same in every process.

Imported by the process that serves a graph and by the child that tries it first (``trial.py``), so it is
light: neither the bundle's manifest nor anything of the network is needed.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from offramp.common.cpus import require_threads
from offramp.common.errors import BundleError, ConfigError, printable
from offramp.common.part.providers import CPU, NAMES, Placement, Provider, Providers

if TYPE_CHECKING:
    import onnxruntime

# As ``libraries.py`` does, which the child does not import: it would take longer than the trial itself.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

MEMORY_BYTES = 2 << 30
"""What all graphs of a process may hold in tensors. A graph of a few nodes can ask for any amount."""

TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}
Port = tuple[str, tuple[int, ...]]
"""ONNX type of an input or output, and its shape without the batch dimension."""
Ports = dict[str, Port]
"""Inputs or outputs by name."""


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


def require_built_in(providers: Providers) -> None:
    """Raises ConfigError where this ONNX Runtime has none of these providers."""
    if missing := _not_built_in(providers):
        *_, reason = missing.values()
        if len(missing) == len(providers):
            raise ConfigError(
                f"--providers {','.join(missing)}: {reason}, expected another build of ONNX Runtime, or "
                "cpu at the end of the list"
            )


def _not_built_in(providers: Providers) -> dict[str, str]:
    import onnxruntime as ort

    built_in = ort.get_available_providers()
    have = ", ".join(name for name, full in NAMES.items() if full in built_in)
    return {
        each.name: f"this ONNX Runtime has only {have}"
        for each in providers
        if NAMES[each.name] not in built_in
    }


def _placed(
    name: str, data: bytes, threads: int, asked: Providers
) -> tuple[onnxruntime.InferenceSession, Placement]:
    """A session with those of the providers that can be had, and what became of each. Raises BundleError."""
    on_cpu_too = asked[-1] in CPU

    def start(providers: Sequence[Provider]) -> onnxruntime.InferenceSession:
        return _started(data, threads, providers, on_cpu_too)

    left_out = _not_built_in(asked)
    kept = [each for each in asked if each.name not in left_out]
    session: onnxruntime.InferenceSession | None = None
    while kept and session is None:
        try:
            session = start(kept)
        except Exception as error:  # ONNX Runtime has no common base class for its errors
            if len(kept) == 1 and kept[0] in CPU:
                raise BundleError(f"{name}: ONNX Runtime refuses it: {first_line(error)}") from None
            provider, reason = _at_fault(start, kept, error)
            left_out[provider.name] = reason
            kept.remove(provider)
    if session is not None:
        # It leaves out what lacks a library, and says so in a log of its own only.
        started = session.get_providers()
        for each in [each for each in kept if NAMES[each.name] not in started]:
            left_out[each.name] = "ONNX Runtime cannot start it: a library or a device is missing"
            kept.remove(each)
    if session is None or not kept:
        reasons = "; ".join(f"{provider}: {reason}" for provider, reason in left_out.items())
        raise BundleError(f"{name}: no provider runs all of it, and cpu is not in --providers ({reasons})")
    used = tuple(each.name for each in kept)
    names = tuple(each.name for each in asked)
    return session, Placement(names, used, _shares(session, used), tuple(left_out.items()))


def _started(
    data: bytes, threads: int, providers: Sequence[Provider], on_cpu_too: bool
) -> onnxruntime.InferenceSession:
    # Imported here: it takes 0.1 s, and `--help` does not need it.
    import onnxruntime as ort

    options = session_options(threads)
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Bytes can be ONNX and ONNX Runtime's own format at once. What `check_graph` read is what runs.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if list(providers) != list(CPU):
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if not on_cpu_too:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return ort.InferenceSession(
        data,
        options,
        providers=[each.arguments(threads) for each in providers],
        # Its fallback would try the same again, and print to stdout.
        enable_fallback=False,
        # Constants are folded outside the arena, without a limit; in a QDQ graph it saves nothing.
        disabled_optimizers=["ConstantFolding"],
    )


def _at_fault(
    start: Callable[[Sequence[Provider]], object], providers: Sequence[Provider], error: Exception
) -> tuple[Provider, str]:
    """The first of these that fails by itself, and how; the first of all where each works alone."""
    rest = [each for each in providers if each in CPU]
    others = [each for each in providers if each not in CPU]
    for each in others if len(others) > 1 else []:
        try:
            start([each, *rest])
        except Exception as own:
            return each, first_line(own)
    return others[0], first_line(error)


def _shares(session: onnxruntime.InferenceSession, used: Sequence[str]) -> dict[str, float] | None:
    """Which share of the operators each provider runs; None where ONNX Runtime does not say."""
    if list(used) == ["cpu"]:
        return {"cpu": 1.0}
    try:
        parts = session.get_provider_graph_assignment_info()
        counts = dict.fromkeys(used, 0)
        for part in parts:
            short = next((name for name, full in NAMES.items() if full == part.ep_name), part.ep_name)
            counts[short] = counts.get(short, 0) + len(part.get_nodes())
    except Exception:  # releases before 1.24 do not have it, and some providers do not report
        return None
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items()} if total else None


class Graph:
    """One ONNX graph, checked against what the manifest promises, on a fixed number of threads.

    Raises BundleError. What it costs to make one of a stranger's bytes has no bound: see ``trial.py``.
    """

    def __init__(
        self,
        name: str,
        data: bytes,
        threads: int,
        inputs: Ports,
        outputs: Ports,
        providers: Providers = CPU,
    ) -> None:
        _limit_memory()
        require_threads(threads - 1)
        self._session, self.placement = _placed(name, data, threads, providers)
        _check_ports(name, "input", self._session.get_inputs(), inputs)
        _check_ports(name, "output", self._session.get_outputs(), outputs)
        self._name, self._wanted = name, outputs
        self._input, self._outputs = next(iter(inputs)), list(outputs)
        self._input_type, self._input_shape = inputs[self._input]

    def run(self, batch: NDArray[np.uint8]) -> list[NDArray[np.generic]]:
        """The outputs for a batch, in the manifest's order. Raises whatever ONNX Runtime raises."""
        return list(self._session.run(self._outputs, {self._input: batch}))

    def try_batch(self, size: int) -> None:
        """Run so many inputs of zeros. Raises BundleError unless finite outputs of the right shape come."""
        # Shapes inside the graph show only when it runs: better here than at the first image.
        name = self._name
        try:
            results = self.run(np.zeros((size, *self._input_shape), TYPES[self._input_type]))
        except Exception as error:
            raise BundleError(f"{name}: does not run: {first_line(error)}") from None
        for result, (port, (_, wanted)) in zip(results, self._wanted.items(), strict=True):
            if result.shape != (size, *wanted):
                raise BundleError(f"{name}: output '{port}' is {result.shape}, expected {(size, *wanted)}")
            if not np.isfinite(result).all():
                raise BundleError(f"{name}: output '{port}' is not finite, expected numbers")


def _check_ports(name: str, side: str, found: list[onnxruntime.NodeArg], wanted: Ports) -> None:
    try:
        have = {port.name: (port.type, tuple(port.shape[1:])) for port in found}
    except UnicodeDecodeError:
        raise BundleError(f"{name}: its {side}s have names that are not text, expected {wanted}") from None
    if have != wanted:
        raise BundleError(f"{name}: its {side}s are {printable(str(have), 300)}, the manifest says {wanted}")


def first_line(error: Exception) -> str:
    """An error's first line, or its type. It repeats names from the graph, so it may hold anything."""
    lines = str(error).strip().splitlines()
    return printable(lines[0], 300) if lines else type(error).__name__
