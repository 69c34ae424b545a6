"""Where and how a run computes: device, precision and processes are `accelerate`'s.

Started by ``accelerate launch`` or ``torchrun``, each process trains on its own device and share of every
batch (`processes`); gradients are averaged, batch norm's statistics are those of the whole batch.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch import Tensor, distributed, nn

from offramp.common.errors import ConfigError
from offramp.training import processes

Precision = Literal["float32", "bfloat16", "float16"]
_MIXED = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
# While one process measures and writes a bundle the others wait.
_LONGEST_WAIT = timedelta(hours=12)
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4

_Value = TypeVar("_Value")


class Machine(TypedDict):
    """The processor's name, the precision of convolutions, the version of torch."""

    device: str
    precision: Precision
    torch: str


class Hardware:
    """This process's device, and the other processes that train with it.

    Args:
        device: the processor or a GPU.
        precision: of convolutions and matrix products; weights and what is sent stay float32.
        compiled: whether ``torch.compile`` fuses a training step.

    Raises:
        ConfigError: float16 on a processor.
    """

    def __init__(
        self,
        device: Literal["cpu", "cuda"] = "cpu",
        precision: Precision = "float32",
        *,
        compiled: bool = False,
    ) -> None:
        if precision == "float16" and device == "cpu":
            # accelerate would train in float32 without a word.
            raise ConfigError("--precision float16: expected a GPU, for a processor bfloat16 or float32")
        # accelerate keeps one state for the life of a process; a second run may differ from the first.
        AcceleratorState._reset_state(reset_partial_state=not distributed.is_initialized())
        self._accelerator = Accelerator(
            cpu=device == "cpu",
            mixed_precision=_MIXED[precision],
            dynamo_backend="inductor" if compiled else "no",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_LONGEST_WAIT)],
        )
        self.precision, self.compiled = precision, compiled

    @property
    def device(self) -> torch.device:
        """Of this process."""
        device: torch.device = self._accelerator.device
        return device

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return processes.rank() == 0

    @property
    def captures(self) -> bool:
        """Whether training steps are replayed as CUDA graphs (`capture`)."""
        plain = self.precision != "float16" and not self.compiled
        return self.device.type == "cuda" and processes.count() == 1 and plain

    def autocast(self) -> AbstractContextManager[None]:
        """A context in which convolutions and matrix products run in the chosen precision."""
        context: AbstractContextManager[None] = self._accelerator.autocast()
        return context

    def place(self, module: nn.Module) -> None:
        """Move a module to the device, in the layout that is fastest there."""
        # A third faster than the default layout on a CPU, and what tensor cores want.
        module.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def prepare(
        self, task: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """A placed module as it is called in training, and its optimizer."""
        if processes.count() > 1 and self.device.type == "cuda":
            # On a processor it is `models.batch_norm`'s.
            nn.SyncBatchNorm.convert_sync_batchnorm(task)  # type: ignore[no-untyped-call]
        prepared: nn.Module = self._accelerator.prepare_model(task)
        stepped: torch.optim.Optimizer = self._accelerator.prepare_optimizer(optimizer)
        return prepared, stepped

    def release(self) -> None:
        """Forget what was prepared."""
        if self.device.type == "cpu":
            # free_memory looks at every object of the process for a device's memory: half a second each time.
            self._accelerator._models, self._accelerator._optimizers = [], []
        else:
            self._accelerator.free_memory()

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss, scaled where the precision needs it."""
        self._accelerator.backward(loss)

    def any(self, condition: bool) -> bool:
        """Whether it is so in any process."""
        if processes.count() == 1:
            return condition
        return bool(processes.summed(torch.tensor(float(condition), device=self.device)))

    def summed(self, values: dict[str, float]) -> dict[str, float]:
        """Each value, summed over all processes."""
        if processes.count() == 1:
            return values
        # In double precision, and of processes that have nothing to add too.
        names = sorted(self.from_main(lambda: list(values)))
        total = torch.tensor([values.get(name, 0.0) for name in names], dtype=torch.float64)
        return dict(zip(names, processes.summed(total.to(self.device)).tolist(), strict=True))

    def from_main(self, make: Callable[[], _Value]) -> _Value:
        """What the main process makes, in each of them."""
        made: list[Any] = [make() if self.is_main else None]
        if processes.count() > 1:
            broadcast_object_list(made)
        value: _Value = made[0]
        return value

    def wait(self) -> None:
        """Until all processes have come here."""
        self._accelerator.wait_for_everyone()

    def describe(self) -> Machine:
        """What records and checkpoints say of it."""
        name, count = _device_name(self.device), processes.count()
        return {
            "device": name if count == 1 else f"{count} x {name}",
            "precision": self.precision,
            "torch": str(torch.__version__),
        }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    threads = torch.get_num_threads()
    return f"{next(names, platform.machine())}, {threads} thread{'s' if threads > 1 else ''}"


def keep_freed_memory() -> None:
    """Tell the C library, where it is glibc, to keep freed memory for the next tensor, for good.

    By default each large tensor is mapped and unmapped again, and on a CPU the page faults of a training step
    take as long as its arithmetic.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 1 << 28)
