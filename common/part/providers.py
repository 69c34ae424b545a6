"""Execution providers of ONNX Runtime: which run a graph, in order of preference, and what came of it.

A provider has a short name, and ONNX Runtime's own options behind it: ``openvino:device_type=GPU``. One that
cannot be had is left out, with the reason, and the next one runs the graph. With ``cpu`` at the end of the
list nothing is refused; without it no operator runs on ONNX Runtime's CPU provider.

Light, as ``session.py`` is: the child that tries a stranger's graphs imports it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from offramp.common.errors import ConfigError

NAMES = {
    "acl": "ACLExecutionProvider",
    "cann": "CANNExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "directml": "DmlExecutionProvider",
    "dnnl": "DnnlExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "vitisai": "VitisAIExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
"""Short name → ONNX Runtime's."""
THREADS = {"openvino": "num_of_threads", "xnnpack": "intra_op_num_threads"}
"""Providers with threads of their own, and the option that limits them to ours."""
ON_HOST = frozenset({"acl", "cpu", "dnnl", "openvino", "xnnpack"})
"""Providers that start within the limits of a trial (``trial.py``). The others load gigabytes of libraries or
compile for minutes, so a trial runs their graphs on the CPU."""


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider: its short name, and its options as ONNX Runtime takes them."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return ":".join([self.name, *(f"{key}={value}" for key, value in self.options)])

    def arguments(self, threads: int) -> tuple[str, dict[str, str]]:
        """What ``InferenceSession`` takes."""
        own = {THREADS[self.name]: str(threads)} if self.name in THREADS else {}
        return NAMES[self.name], own | dict(self.options)


Providers = tuple[Provider, ...]
"""In order of preference."""
CPU: Providers = (Provider("cpu"),)


@dataclass(frozen=True, slots=True)
class Placement:
    """What runs one graph. asked, used: short names in order of preference."""

    asked: tuple[str, ...]
    used: tuple[str, ...]
    shares: Mapping[str, float] | None = field(hash=False)
    """Which share of the graph's operators each runs; None where ONNX Runtime does not say (before 1.24)."""
    left_out: tuple[tuple[str, str], ...] = ()
    """Providers that cannot be had, and why."""

    @property
    def main(self) -> str:
        """The provider that runs the most operators; the preferred one where that is not known."""
        if not self.shares:
            return self.used[0]
        return max(self.used, key=lambda name: (self.shares or {}).get(name, 0.0))

    @property
    def warning(self) -> str | None:
        """What keeps a preferred provider from running the graph; None: nothing does."""
        missing = [f"no {name}: {reason}" for name, reason in self.left_out]
        if self.shares is not None:
            idle = (name for name in self.used if name != "cpu" and not self.shares.get(name))
            missing += [f"{name} takes none of its operators" for name in idle]
        return f"{'; '.join(missing)}; runs on {self}" if missing else None

    def __str__(self) -> str:
        shares = self.shares or dict.fromkeys(self.used, 0.0)
        running = [name for name in self.used if shares.get(name)] or self.used
        if self.shares is None or len(running) == 1:
            return ", ".join(running)
        return ", ".join(f"{name} ({shares[name]:.1%} of its operators)" for name in running)


ON_CPU = Placement(("cpu",), ("cpu",), {"cpu": 1.0})


def parse(texts: Sequence[str]) -> Providers:
    """Providers from ``NAME:KEY=VALUE:…`` each. Raises ValueError.

    What stands between colons without an equals sign belongs to the value before it, as in
    ``openvino:device_type=AUTO:GPU``.
    """
    found = tuple(_provider(text.strip()) for text in texts)
    names = [each.name for each in found]
    if not names:
        raise ValueError("expected at least one provider")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice}: is there twice, expected once")
    if "cpu" in names[:-1]:
        raise ValueError("cpu: runs every operator, expected it last")
    return found


def _provider(text: str) -> Provider:
    name, *parts = text.split(":")
    if name not in NAMES:
        raise ValueError(f"{name[:80]!r}: not a provider, expected one of {', '.join(NAMES)}")
    options: list[tuple[str, str]] = []
    for part in parts:
        key, equals, value = part.partition("=")
        if equals and key:
            options.append((key, value))
        elif options and not equals:
            options[-1] = options[-1][0], f"{options[-1][1]}:{part}"
        else:
            raise ValueError(f"{text[:80]!r}: expected {name}:OPTION=VALUE")
    return Provider(name, tuple(options))


def providers_of(value: str | Sequence[str]) -> Providers:
    """Of an argument: a provider, several with commas between them, or a list. Raises ConfigError."""
    texts = value.split(",") if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(each, str) for each in texts):
        raise ConfigError(f"providers={value!r:.80}: expected a provider such as cpu, or a list of them")
    try:
        return parse(texts)
    except ValueError as error:
        raise ConfigError(f"--providers {error}") from None


def in_trial(providers: Providers) -> tuple[Providers, str | None]:
    """The providers that a trial's child uses, and why not all of them."""
    used = tuple(each for each in providers if each.name in ON_HOST)
    if len(used) == len(providers):
        return providers, None
    others = ", ".join(each.name for each in providers if each not in used)
    # Without the CPU in the list too: there it only tries, it answers nothing.
    tried = used if used and used[-1] == CPU[0] else (*used, *CPU)
    return tried, f"{others}: not used for the trial in a child process, which has no room for it"
