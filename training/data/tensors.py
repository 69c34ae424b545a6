"""Labelled sounds and tensors, as people have them, and the spec that turns each into the head's input.

sounds/zero/1.wav …, sounds/train/zero/1.wav …, sounds.csv, sounds.parquet   as `photos` has pictures
tensors/zero/1.npy …                                                         one array a file

What a flag does not say is taken from the files and said aloud: the rate that most of them have, the seconds
that nineteen of twenty last at most. Tensors are uint8 at the head: floats are quantized by their range.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from offramp.common.errors import ConfigError, DataError, printable
from offramp.common.inputs import sounds, tensors
from offramp.common.inputs.folder import find
from offramp.common.inputs.headers import EXTENSIONS, Refused
from offramp.common.inputs.spec import ArrayFile, LogMel, TensorInput, WavFile
from offramp.common.inputs.wav import Wav, is_wav, read_wav
from offramp.training.data import photos, sources
from offramp.training.data.photos import Columns, Photos

Known = Literal["picture", "wav", "tensor"]
Kind = Literal["auto", "picture", "wav", "tensor"]

PLAIN = Columns()
MELS, FLOOR, FMIN = 40, -80.0, 50.0
WINDOW_SECONDS, HOP_SECONDS = 0.032, 0.0125
"""Of speech: a window holds a few periods of the lowest voices."""
MOST_SECONDS = 10.0
"""Chosen by itself; --seconds may ask for more."""
_LASTS = 0.95
_LOOKED_AT = 400
"""Files whose headers are looked at to choose."""
_SOUNDS = (".wav", ".wave")
_KINDS: dict[str, Known] = {
    ".npy": "tensor",
    **dict.fromkeys(_SOUNDS, "wav"),
    **dict.fromkeys(EXTENSIONS, "picture"),
}


@dataclass(frozen=True)
class Options:
    """What the command line says of inputs that are no pictures; None: as the files suggest.

    range: (low, high) of a tensor's values; mean, std: of the values that the model expects, one or for each
    channel.
    """

    rate: int | None = None
    seconds: float | None = None
    mels: int | None = None
    window: int | None = None
    hop: int | None = None
    fmin: float | None = None
    fmax: float | None = None
    floor: float | None = None
    range: tuple[float, float] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass
class Originals:
    """The files that inputs were made of, by the inputs' own bytes: to compare with sending them."""

    _files: dict[bytes, Path | bytes] = field(default_factory=dict)

    def put(self, made: NDArray[np.uint8], file: sources.File) -> None:
        """Remember a file by what was made of it."""
        self._files[_digest(made)] = file.data if file.path is None else file.path

    def of(self, made: NDArray[np.uint8]) -> bytes:
        """The file's bytes. Raises KeyError for an input that was made of none, OSError if it is gone."""
        found = self._files[_digest(made)]
        return found if isinstance(found, bytes) else found.read_bytes()


def _digest(made: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(made.tobytes()).digest()


@dataclass(frozen=True)
class Tensors:
    """What was read: ``photos`` in three parts, as uint8 [N, *shape] by ``spec``, with notes."""

    photos: Photos
    spec: TensorInput
    originals: Originals


def kind_of(path: Path, columns: Columns = PLAIN) -> Known:
    """What a folder or file holds: pictures, sounds or tensors. Raises ConfigError where it is mixed."""
    if path.is_dir():
        parquet = sorted(path.glob("*.parquet"))
        if parquet:
            return _kind_of_parquet(parquet[0])
        if (path / "labels.csv").is_file() and not any(each.is_dir() for each in path.iterdir()):
            return _kind_of_csv(path / "labels.csv")
        found = Counter(
            _KINDS[each.suffix.lower()] for each in find(path, _KINDS).files if not _hidden(each, path)
        )
        if len(found) > 1:
            counts = ", ".join(f"{count:,} {kind}" for kind, count in found.most_common())
            raise ConfigError(
                f"{path}: holds files of several kinds ({counts}); expected --input to name one"
            )
        return next(iter(found), "picture")
    if path.suffix.lower() == ".csv":
        return _kind_of_csv(path)
    return _kind_of_parquet(path) if path.suffix.lower() == ".parquet" else "picture"


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _kind_of_csv(path: Path) -> Known:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            lines = [file.readline(4096) for _ in range(2)]
    except OSError:
        return "picture"
    return next(
        (kind for suffix, kind in _KINDS.items() if f"{suffix}," in f"{lines[1].lower().strip()},"), "picture"
    )


def _kind_of_parquet(path: Path) -> Known:
    import pyarrow.parquet as parquet

    try:
        names = parquet.read_schema(path).names
    except Exception:  # Arrow's errors have no common base; `photos` says what is wrong with it
        return "picture"
    return "wav" if "audio" in names and "image" not in names else "picture"


def read_tensors(
    path: Path,
    kind: Literal["wav", "tensor"],
    options: Options,
    *,
    seed: int,
    columns: Columns = PLAIN,
    counted: Callable[[int], Callable[[], object]] = lambda _: lambda: None,
    skipped: Callable[[str], object] | None = None,
) -> Tensors:
    """Choose the spec by options and files, then read, check and divide them.

    The arguments and errors are those of `photos.read_photos`.
    """
    if kind == "wav" and columns.image == "image" and kind_of(path) == "wav" and _is_parquet(path):
        columns = Columns("audio", columns.label, columns.classes)
    recipe = photos.folder_recipe(path, columns)
    what = "sounds" if kind == "wav" else "tensors"
    parts = photos.find_parts(path, recipe, _SOUNDS if kind == "wav" else (".npy",), what)
    rows = sources.file_rows(parts[0], recipe.image)
    files = _files(rows, recipe.image)
    if kind == "wav":
        spec, notes = wav_spec(options, files)
    else:
        spec, notes = array_spec(options, files)
    originals = Originals()

    def decode(file: sources.File) -> NDArray[np.uint8]:
        made = np.asarray(tensors.decode(file.name, file.data, spec), np.uint8)
        originals.put(made, file)
        return made

    reader = sources.Reader(spec.shape, decode, what, what)
    made = photos.divided(path, recipe, parts, seed=seed, counted=counted, skipped=skipped, reader=reader)
    return Tensors(Photos(made.data, (*notes, *made.notes)), spec, originals)


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet" or (path.is_dir() and any(path.glob("*.parquet")))


Files = Callable[[int], Iterator[sources.File]]


def _files(rows: Any, column: str) -> Files:
    """So many files from all over the rows, with their names; those that cannot be read are passed over."""

    def some(most: int) -> Iterator[sources.File]:
        step = max(1, -(-len(rows) // most))
        for number in range(0, len(rows), step):
            try:
                yield sources.file_of(rows[number][column], f"row {number}")
            except DataError:
                continue

    return some


def wav_spec(options: Options, files: Files) -> tuple[TensorInput, tuple[str, ...]]:
    """The spec for sounds, and what was chosen, a sentence each. Raises ConfigError or DataError."""
    found: list[Wav] = []
    for each in files(_LOOKED_AT):
        if is_wav(each.data):
            try:
                found.append(read_wav(each.data))
            except Refused:
                continue
    if not found:
        raise DataError("none of the sounds is a WAV that can be read; expected PCM or floats")
    notes = []
    rate = options.rate
    if rate is None:
        rate, count = Counter(each.rate for each in found).most_common(1)[0]
        rate = min(rate, 48_000)
        notes.append(f"rate {rate:,} Hz, as {count:,} of {len(found):,} files have (--rate)")
    seconds = options.seconds
    if seconds is None:
        lengths = np.array([each.frames / each.rate for each in found])
        seconds = min(MOST_SECONDS, max(0.1, float(np.ceil(np.quantile(lengths, _LASTS) * 10) / 10)))
        share = (lengths <= seconds).mean()
        notes.append(f"{seconds:g} s, which {share:.0%} of the files last at most (--seconds)")
    given: dict[str, Any] = {
        "window": options.window or max(16, round(rate * WINDOW_SECONDS)),
        "hop": options.hop or max(1, round(rate * HOP_SECONDS)),
        "mels": options.mels or MELS,
        "fmin": FMIN if options.fmin is None else float(options.fmin),
        "fmax": float(rate / 2 if options.fmax is None else options.fmax),
        "floor": FLOOR if options.floor is None else float(options.floor),
    }
    try:
        transform = LogMel(kind="log-mel", **given)
        file = WavFile(kind="wav", rate=rate, seconds=float(seconds), transform=transform)
        low, high = options.range or (transform.floor, 0.0)
        spec = TensorInput(
            kind="tensor", shape=(1, transform.mels, file.frames), dtype="uint8", range=(low, high), file=file
        )
    except ValidationError as error:
        raise ConfigError(f"the sounds' transform: {_first(error)}") from None
    empty = int((sounds.mel_bands(rate, transform).sum(axis=0) == 0).sum())
    if empty:
        raise ConfigError(
            f"--mels {transform.mels}: {empty} of the bands hold no frequency of a window of "
            f"{transform.window} samples; expected fewer bands or a longer --window"
        )
    notes.append(
        f"log-mel of {transform.mels} bands {transform.fmin:g} … {transform.fmax:g} Hz, windows of "
        f"{transform.window} samples every {transform.hop}: {'×'.join(map(str, spec.shape))} values of "
        f"{low:g} … {high:g} dB as uint8"
    )
    return spec, tuple(notes)


def array_spec(options: Options, files: Files) -> tuple[TensorInput, tuple[str, ...]]:
    """The spec for ``.npy`` files, of the first one's shape; the same for all. Raises as `wav_spec`."""
    shape: tuple[int, ...] | None = None
    low, high, wide, notes = np.inf, -np.inf, False, []
    for each in files(1 << 62):
        data, file = each.data, io.BytesIO(each.data)
        try:
            own, dtype = tensors.npy_header(file)
        except Refused:
            continue
        if shape is None:
            shape = own
            wide = dtype.kind == "f"
            notes.append(f"{'×'.join(map(str, own))} values of {dtype}, as {printable(each.name, 80)} has")
            if not wide or options.range is not None:
                break
        values = (
            np.frombuffer(data, dtype, offset=file.tell())
            if dtype.kind == "f" and len(data) > file.tell()
            else None
        )
        if values is not None and np.isfinite(values).all():
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    if shape is None:
        raise DataError("none of the tensors is an .npy that can be read")
    if options.range is not None:
        low, high = options.range
    elif not wide:
        low, high = 0.0, 255.0
    else:
        notes.append(f"range {low:g} … {high:g}, as the files to train have, in 256 steps (--range)")
    try:
        spec = TensorInput(
            kind="tensor",
            shape=shape,
            dtype="uint8",
            range=(float(low), float(high)),
            file=ArrayFile(kind="array"),
        )
    except ValidationError as error:
        raise ConfigError(f"the tensors: {_first(error)}") from None
    return spec, tuple(notes)


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return printable(f"{where}: {first['msg']}" if where else first["msg"])
