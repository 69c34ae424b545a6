"""Inputs that are worth a person's look, kept on this machine's disk (``choice.py``, ``folder.py``).

Rules this module keeps:
- Nothing leaves the device, and nothing here delays or stops an answer: an input is handed over to a thread.
  A disk that fails is logged, counted, and tried again (``trouble.py``); meanwhile samples are given up.
- An input is kept as the file that it came in, byte for byte; else, or where that is too large, as the head
  takes it: a picture as PNG, a tensor as ``.npy``.
- Memory is bounded: so many samples wait for the disk, and so many bytes of files are held at a time.
- What the server says of an audit decides too, so that an audited input is chosen when its audit has ended.
"""

from __future__ import annotations

import io
import logging
import queue
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError, printable
from offramp.common.inputs.headers import EXTENSIONS_OF, sniff
from offramp.common.inputs.spec import Preprocessing
from offramp.common.inputs.tensors import NPY
from offramp.common.inputs.wav import is_wav
from offramp.device.head import EarlyExit
from offramp.device.metrics import DeviceMetrics
from offramp.device.options import KeepOptions
from offramp.device.result import Result
from offramp.device.samples.choice import Choice
from offramp.device.samples.folder import Folder
from offramp.device.samples.record import LABEL_CHARACTERS, Decision, Record, now, plain
from offramp.device.spool.trouble import Trouble
from offramp.link.outcome import Answer, Outcome

log = logging.getLogger("offramp.edge-device")

WAITING_MOST = 64
"""Samples in memory on their way to the disk."""
HELD_BYTES = 32 << 20
"""Of files whose inputs are not decided yet or wait for the disk; others are kept as the head takes them."""
STOP_SECONDS = 5.0


@dataclass(slots=True)
class Taken:
    """An input until it is known whether it is kept."""

    class_index: int
    """The early exit's answer, and its confidence."""
    confidence: float
    name: str
    index: int
    file: bytes
    """Empty where there is none, or no room for it."""
    image: NDArray[Any] | None
    """As the head takes it, where there is no file."""
    held: bool
    """Whether it is this one's own, or still the caller's."""
    drawn: bool


@dataclass(frozen=True, slots=True)
class _Job:
    taken: Taken
    result: Result
    audit: Decision | None
    reasons: tuple[str, ...]
    counts_as: str
    time: str


class Samples:
    """Keeps samples of one bundle's inputs; from any thread. Without a folder it keeps none.

    Raises ConfigError for a folder that is in use, is not one or cannot be made.
    """

    def __init__(self, options: KeepOptions, bundle: Bundle, metrics: DeviceMetrics) -> None:
        self._bundle = bundle
        self._metrics = metrics
        self._choice = Choice(options.keep_share)
        self._trouble = Trouble()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._held = 0
        self._folder: Folder | None = None
        if options.keep is None:
            return
        self._folder = folder = Folder(options.keep, options.keep_bytes)
        try:
            folder.open()
        except ConfigError as error:
            raise ConfigError(f"--keep {folder.path}: {error}") from None
        except (OSError, ValueError) as error:  # a path with a NUL in it
            why = error.strerror if isinstance(error, OSError) else "is not a path"
            raise ConfigError(
                f"--keep {printable(str(folder.path))}: {why}, expected a folder to write or none yet"
            ) from None
        self._scanned = False
        self._thread = threading.Thread(target=self._work, name="offramp-samples", daemon=True)
        self._thread.start()

    def take(
        self,
        exit_: EarlyExit,
        image: NDArray[Any],
        name: str,
        index: int,
        file: object,
        *,
        held: bool,
    ) -> Taken | None:
        """An input that was handed in; ``answered`` has to follow. None where nothing is kept.

        file: what it was decoded from; no file, if it is not bytes. held: whether the image, which is the
        caller's, is needed after ``Device.submit``.
        """
        if self._folder is None:
            return None
        drawn = self._choice.draw()
        if isinstance(file, bytearray | memoryview):  # the caller's
            file = bytes(file)
        if isinstance(file, bytes) and suffix_of(file):
            with self._lock:
                fits = self._held + len(file) <= HELD_BYTES
                self._held += len(file) * fits
            if fits:
                return Taken(exit_.class_index, exit_.confidence, name, index, file, None, True, drawn)
        image = image.copy() if held else image
        return Taken(exit_.class_index, exit_.confidence, name, index, b"", image, held, drawn)

    def answered(self, taken: Taken | None, result: Result, audit: Outcome | None = None) -> None:
        """It has its result, and its audit, where it had one, its outcome. Never waits, never fails."""
        if taken is None:
            return
        # One that a machine in between cut short is lost: the last part did not see it.
        audited = audit if isinstance(audit, Answer) and not audit.fallback else None
        differs = audited is not None and audited.class_index != result.class_index
        reasons = self._choice.reasons(
            result.confidence, drawn=taken.drawn, unknown=result.unknown, differs=differs
        )
        if not reasons:
            self._release(taken)
            return
        counts_as = self._choice.allowed(reasons, time.monotonic())
        if counts_as is None or self._jobs.qsize() >= WAITING_MOST:
            self._drop(taken, "pace" if counts_as is None else "busy")
            return
        if not taken.held and taken.image is not None:
            taken.image, taken.held = taken.image.copy(), True
        said = None if audited is None else self._decision(audited.class_index, audited.probability)
        self._jobs.put(_Job(taken, result, said, reasons, counts_as, now()))

    def close(self) -> None:
        """Write what is still in memory, and stop."""
        if self._folder is not None:
            self._jobs.put(None)
            self._thread.join(STOP_SECONDS)

    # --- the thread ---

    def _work(self) -> None:
        assert self._folder is not None
        self._try(self._open)
        while (job := self._jobs.get()) is not None:
            if self._trouble.is_left_alone(time.monotonic()) or not self._try(partial(self._keep, job)):
                self._drop(job.taken, "disk")
            else:
                self._release(job.taken)
        self._folder.close()

    def _try(self, step: Any) -> bool:
        """Whether this worked. Whatever it raises, the samples to come need this thread."""
        assert self._folder is not None
        try:
            step()
        except Exception as error:
            level = self._trouble.failed(time.monotonic())
            shown = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            log.log(level, "--keep %s fails: %s; answers go on without it", self._folder.path, shown)
            # Another disk may be there the next time.
            self._folder.close()
            self._scanned = False
            return False
        return True

    def _open(self) -> None:
        assert self._folder is not None
        self._folder.open()
        if not self._scanned:
            self._folder.scan()
            self._scanned = True
        self._metrics.samples_entries.set(self._folder.entries)
        self._metrics.samples_bytes.set(self._folder.bytes)

    def _keep(self, job: _Job) -> None:
        assert self._folder is not None
        self._open()
        taken = job.taken
        suffix, data = suffix_of(taken.file), taken.file
        if suffix is None:
            suffix, data = self._encoded(taken.image)
        fits = self._folder.add(job.counts_as, suffix, data, partial(self._record, job, len(data)))
        self._trouble.worked()
        if not fits:
            self._metrics.samples_dropped["large"].inc()
            return
        for reason in job.reasons:
            self._metrics.samples_kept[reason].inc()
        self._metrics.samples_entries.set(self._folder.entries)
        self._metrics.samples_bytes.set(self._folder.bytes)

    def _encoded(self, image: NDArray[Any] | None) -> tuple[str, bytes]:
        """An input as the head takes it, as a file."""
        assert image is not None
        buffer = io.BytesIO()
        if isinstance(self._bundle.manifest.input, Preprocessing):
            from PIL import Image

            Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(buffer, "PNG")
            return "png", buffer.getvalue()
        np.save(buffer, image, allow_pickle=False)
        return "npy", buffer.getvalue()

    def _record(self, job: _Job, size: int, file: str) -> bytes:
        result, taken = job.result, job.taken
        return Record(
            file=file,
            size=size,
            name=plain(taken.name),
            index=taken.index,
            time=job.time,
            reasons=list(job.reasons),  # type: ignore[arg-type]
            label=self._label(result.class_index),
            class_index=result.class_index,
            confidence=_probability(result.confidence),
            source=result.source,
            unknown=result.unknown,
            early=self._decision(taken.class_index, taken.confidence),
            audit=job.audit,
            bundle=self._bundle.manifest.name,
            digest=self._bundle.digest.hex(),
        ).text()

    def _decision(self, class_index: int, confidence: float) -> Decision:
        return Decision(
            label=self._label(class_index), class_index=class_index, confidence=_probability(confidence)
        )

    def _label(self, class_index: int) -> str:
        return plain(self._bundle.manifest.classes[class_index], LABEL_CHARACTERS)

    def _drop(self, taken: Taken, cause: str) -> None:
        self._metrics.samples_dropped[cause].inc()
        self._release(taken)

    def _release(self, taken: Taken) -> None:
        if taken.file:
            with self._lock:
                self._held -= len(taken.file)


def _probability(value: float) -> float:
    """Rounding may leave the last digit of a sum over 1."""
    return min(max(float(value), 0.0), 1.0)


def suffix_of(file: bytes) -> str | None:
    """The suffix that a file is kept with, by its content; None for what is not kept as it is."""
    if is_wav(file[:12]):
        return "wav"
    if file.startswith(NPY):
        return "npy"
    kind = sniff(file[:32])
    return None if kind is None else EXTENSIONS_OF[kind][0].removeprefix(".")
