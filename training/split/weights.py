"""A file of weights into a module: safetensors, or a pickle of tensors and nothing else.

A pickle can run code when it is read. ``torch.load(weights_only=True)`` reads tensors and plain containers
only; a file that asks for more is refused, whoever made it.
"""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from offramp.common.errors import ConfigError, printable

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module")
"""Keys under which training programs keep the tensors, beside optimizers and epochs."""
PREFIXES = ("module.", "model.", "_orig_mod.", "backbone.", "net.")
"""What wrappers (data parallel, compilers, training loops) put before each name."""
_SHOWN = 3
_WRAPPED_BY = 8
"""Prefixes that are taken off a name, one after the other."""
_LEAST_BYTES, _TIMES = 1 << 30, 16
"""A file may be so large, or so many times the model: a checkpoint also has what an optimizer keeps."""
_OPCODES = 1_000_000
"""Steps of a pickle, each of which may make an object; a tensor takes about thirty."""
_ENTRIES = 100_000


def load_weights(module: nn.Module, path: Path) -> tuple[str, ...]:
    """Put a file's tensors into a module, whose device and dtype stay.

    Tensors inside {"state_dict": ...} and names with a wrapper's prefix are accepted; counters of batch norm
    may be missing.

    Returns:
        what was done beside, a sentence each, such as "took the tensors under 'state_dict'".

    Raises:
        ConfigError: the file cannot be read, asks for code, or its tensors do not fit: how many, and the
            first few.
    """
    wanted = {name: tensor for name, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}
    tensors, notes = _read(path, sum(each.numel() * each.element_size() for each in wanted.values()))
    tensors, more = _without_prefix(tensors, wanted)
    missing = [name for name in wanted if name not in tensors and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in tensors if name not in wanted]
    other = [name for name in wanted if name in tensors and tensors[name].shape != wanted[name].shape]
    if missing or unexpected or other:
        raise ConfigError(_misfit(path, tensors, wanted, missing, unexpected, other))
    for name, tensor in tensors.items():
        _check_values(path, name, tensor, wanted[name])
    module.load_state_dict(tensors, strict=False)
    return (*notes, *more)


def _check_values(path: Path, name: str, tensor: Tensor, wanted: Tensor) -> None:
    """That a tensor of the right shape has values, and that the model's type can hold them."""
    found = f"{path}: '{printable(name)}' is"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise ConfigError(f"{found} sparse, quantized or without values; expected a plain tensor")
    if tensor.is_complex() or tensor.is_floating_point() != wanted.is_floating_point():
        kinds = (str(each.dtype).removeprefix("torch.") for each in (tensor, wanted))
        raise ConfigError("{} {}; expected {}".format(found, *kinds))
    if tensor.is_floating_point() and not tensor.to(wanted.dtype).isfinite().all():
        raise ConfigError(f"{path}: '{printable(name)}' has values that are not finite")


def _misfit(
    path: Path,
    tensors: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    other: list[str],
) -> str:
    parts = []
    if missing:
        parts.append(f"{len(missing)} of the model's {len(wanted)} are missing ({_first(missing)})")
    if unexpected:
        parts.append(
            f"{len(unexpected)} of the file's {len(tensors)} are not in the model ({_first(unexpected)})"
        )
    if other:
        name = other[0]
        parts.append(
            f"{len(other)} have another shape ({printable(name)}: {[*tensors[name].shape]}, "
            f"the model's {[*wanted[name].shape]})"
        )
    return f"{path}: its tensors do not fit the model: {'; '.join(parts)}"


def _first(names: list[str]) -> str:
    shown = ", ".join(printable(name, 80) for name in names[:_SHOWN])
    return f"{shown}, …" if len(names) > _SHOWN else shown


def _read(path: Path, model_bytes: int) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    try:
        with path.open("rb") as file:
            start, size = file.read(16), file.seek(0, 2)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; expected a file of weights") from None
    most = max(_LEAST_BYTES, _TIMES * model_bytes)
    if size > most:
        raise ConfigError(f"{path}: {size:,} bytes; expected at most {most:,} for this model")
    if _is_safetensors(path, start):
        return _read_safetensors(path), ()
    if path.suffix.lower() == ".onnx":
        raise ConfigError(f"{path}: an ONNX file; expected safetensors, or torch.save of a state_dict()")
    if not start.startswith((b"PK", b"\x80")):
        raise ConfigError(
            f"{path}: not a safetensors file or a torch.save file (starts with {start[:4].hex(' ')})"
        )
    return _tensors_of(path, _read_pickle(path))


def _is_safetensors(path: Path, start: bytes) -> bool:
    """By its first bytes: the length of a JSON object, and the object."""
    return path.suffix == ".safetensors" or (len(start) > 8 and start[8:9] == b"{" and start[:2] != b"PK")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise ConfigError(
            f"{path}: reading it needs the package 'safetensors': pip install 'offramp[split]'"
        ) from None
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        raise ConfigError(f"{path}: a damaged safetensors file: {printable(str(error))}") from None


def _read_pickle(path: Path) -> Any:
    try:
        _check_size(path)
    except ConfigError:
        raise
    except Exception as error:  # of zipfile and pickletools, as of the reader below
        raise ConfigError(f"{path}: a damaged torch.save file: {printable(str(error))}") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{path}: refused: it is more than tensors in plain containers{_asked(str(error))}; "
            "save the module's state_dict(), as safetensors if you can"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(f"{path}: a damaged torch.save file: {printable(first)}") from None
    except Exception as error:  # a hostile pickle makes the reader raise anything
        raise ConfigError(f"{path}: a damaged torch.save file ({type(error).__name__})") from None


def _check_size(path: Path) -> None:
    """Refuse a file that would take far more memory or time than its bytes: a zip that unpacks to more than
    it is, which ``torch.save`` never writes, and a pickle of millions of objects."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            file.seek(0)
            # Of a file without zip: a number, a version, the machine, the tensors, their storages' names.
            for _ in range(5):
                _check_pickle(path, file)
                if not file.read(1):
                    break
                file.seek(-1, 1)
            return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        unpacked = sum(each.file_size for each in entries)
        if len(entries) > _ENTRIES or unpacked > path.stat().st_size:
            raise ConfigError(
                f"{path}: {len(entries):,} entries of {unpacked:,} bytes, more than the file has; "
                "expected what torch.save writes"
            )
        for each in entries:
            if each.filename.endswith("data.pkl"):
                with archive.open(each) as content:
                    _check_pickle(path, content)


def _check_pickle(path: Path, file: IO[bytes]) -> None:
    """Read one pickle without making anything of it."""
    for number, _ in enumerate(pickletools.genops(file)):
        if number > _OPCODES:
            raise ConfigError(f"{path}: a pickle of over {_OPCODES:,} steps; expected tensors by name")


def _asked(text: str) -> str:
    """What a refused pickle asked for, from torch's long explanation."""
    for before in ("Unsupported global: GLOBAL ", "Unsupported class ", "unsupported GLOBAL "):
        _, found, rest = text.partition(before)
        if found:
            return f" (it asks for {printable(rest.split()[0])})"
    return ""


def _tensors_of(path: Path, loaded: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    if isinstance(loaded, Mapping) and not any(isinstance(each, Tensor) for each in loaded.values()):
        for key in WRAPPERS:
            if isinstance(loaded.get(key), Mapping):
                loaded, notes = loaded[key], (f"took the tensors under '{key}'",)
                break
    if not isinstance(loaded, Mapping) or not loaded:
        raise ConfigError(
            f"{path}: holds {type(loaded).__name__}{'' if loaded else ', empty'}; expected tensors by name"
        )
    wrong = next((k for k, v in loaded.items() if not isinstance(k, str) or not isinstance(v, Tensor)), None)
    if wrong is not None:
        kind = type(loaded[wrong]).__name__
        raise ConfigError(f"{path}: '{printable(str(wrong))}' is {kind}; expected tensors by name")
    return dict(loaded), notes


def _without_prefix(
    tensors: dict[str, Tensor], wanted: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Without the prefix that all names have and the model's do not; wrappers may be nested."""
    notes: list[str] = []
    for _ in range(_WRAPPED_BY):
        if tensors.keys() & wanted.keys():
            break
        prefix = next((each for each in PREFIXES if all(n.startswith(each) for n in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        notes.append(f"left out '{prefix}' before each name")
    return tensors, tuple(notes)
