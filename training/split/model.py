"""A trained classifier by what a user calls it: ``timm:NAME``, ``hf:DIRECTORY`` and the other forms of MODEL.

The libraries are the user's own: they are imported when a MODEL needs them, and not installed with Offramp.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from offramp.common.errors import ConfigError, printable
from offramp.training.models.networks import BACKBONES
from offramp.training.split import preprocessing
from offramp.training.split.preprocessing import Preprocessing
from offramp.training.split.weights import load_weights

FORMS = (
    "timm:NAME, torchvision:NAME, hf:DIRECTORY_OR_ID, package.module:function, or one of the paper's: "
    "vgg19, resnet32, mobilenetv2"
)
PAPERS = {"vgg19": "vgg-19", "resnet32": "resnet-32", "mobilenetv2": "mobilenet-v2"}
SIDE = 224
_SMALL_SIDE, _SMALL_CLASSES = 32, 10


@dataclass(frozen=True)
class Model:
    """A classifier that is ready to be captured.

    name: as it was asked for.
    module: takes float32 [N, *shape].
    shape: of one input, (channels, side, side) for pictures.
    preprocessing: what it expects of pictures, None where its makers did not write it down.
    notes: what a user should know, a sentence each.
    """

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    preprocessing: Preprocessing | None = None
    notes: tuple[str, ...] = ()


def load_model(
    name: str,
    *,
    weights: Path | None = None,
    pretrained: bool = False,
    classes: int | None = None,
    side: int | None = None,
) -> Model:
    """Build a classifier.

    Args:
        name: one of FORMS.
        weights: a file of its tensors (`load_weights`); in place of ``pretrained``.
        pretrained: with its makers' weights, which may be downloaded; else they are random.
        classes: K, where it is not the library's own number; None for a function of the user's.
        side: of pictures, in pixels; None: what its makers state, else 224, and 32 for the paper's.

    Raises:
        ConfigError: no such form or model, a package is missing, or the weights do not fit.
    """
    kind, colon, rest = name.partition(":")
    loaders: dict[str, Callable[..., Model]] = {
        "timm": _timm,
        "torchvision": _torchvision,
        "hf": _hugging_face,
    }
    wanted = pretrained and weights is None
    if name.lower().endswith(".onnx"):
        raise ConfigError(
            f"{printable(name)}: an ONNX file cannot be split, because its tail cannot be trained; "
            "expected the PyTorch model it was exported from, as package.module:function, and its --weights"
        )
    if colon and kind in loaders:
        model = loaders[kind](rest, wanted, classes, side)
    elif colon:
        model = _function(kind, rest, classes, side)
    else:
        model = _paper(name, classes, side)
    model = replace(model, name=name)
    if weights is not None:
        notes = load_weights(model.module, weights)
        model = replace(model, notes=(*model.notes, *(f"{weights}: {note}" for note in notes)))
    return model


def _paper(name: str, classes: int | None, side: int | None) -> Model:
    backbone = PAPERS.get(name, name)
    if backbone not in BACKBONES:
        raise ConfigError(f"{printable(name)}: not a model; expected {FORMS}")
    side = side or (SIDE if backbone.endswith("large") else _SMALL_SIDE)
    return Model(name, BACKBONES[backbone](classes or _SMALL_CLASSES, side), (3, side, side))


def _timm(name: str, pretrained: bool, classes: int | None, side: int | None) -> Model:
    timm = _library("timm", f"timm:{name}")
    if not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), 4, 0.5)
        raise ConfigError(f"timm:{printable(name)}: timm has no such model{_such_as(near)}")
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if side is not None and getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
        # Its positions are learned for one size.
        options["img_size"] = side
    module = _built(f"timm:{name}", lambda: timm.create_model(name, pretrained=pretrained, **options))
    config = getattr(module, "pretrained_cfg", None) or {}
    found = preprocessing.of_timm(config)
    channels = int((config.get("input_size") or (3,))[0])
    return _with_side(module, channels, side, found)


def _torchvision(name: str, pretrained: bool, classes: int | None, side: int | None) -> Model:
    library = _library("torchvision", f"torchvision:{name}")
    models = library.models
    known = models.list_models(module=models)
    if name not in known:
        near = difflib.get_close_matches(name, known, 4, 0.5)
        raise ConfigError(
            f"torchvision:{printable(name)}: torchvision has no such classifier{_such_as(near)}"
        )
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    chosen = models.get_model_weights(name).DEFAULT
    if pretrained and classes is not None:
        raise ConfigError(
            f"torchvision:{name}: its weights are for {len(chosen.meta['categories'])} classes; "
            "expected no other number"
        )
    module = _built(
        f"torchvision:{name}",
        lambda: models.get_model(name, weights=chosen if pretrained else None, **options),
    )
    return _with_side(module, 3, side, preprocessing.of_torchvision(chosen.transforms()))


def _hugging_face(name: str, pretrained: bool, classes: int | None, side: int | None) -> Model:
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise ConfigError(f"hf:{printable(name)}: no such directory")
    library = _library("transformers", f"hf:{name}")
    options = {} if classes is None else {"num_labels": classes}
    auto = library.AutoModelForImageClassification

    def build() -> nn.Module:
        # Code that comes with a model is never run.
        config = library.AutoConfig.from_pretrained(name, trust_remote_code=False, **options)
        if not pretrained:
            module: nn.Module = auto.from_config(config, trust_remote_code=False)
            return module
        ignore = classes is not None
        loaded: nn.Module = auto.from_pretrained(
            name, config=config, trust_remote_code=False, ignore_mismatched_sizes=ignore
        )
        return loaded

    module = _built(f"hf:{name}", build)
    config: Any = module.config
    file = Path(name) / "preprocessor_config.json"
    if not file.is_file():
        hub = importlib.import_module("transformers.utils.hub")
        with suppress(OSError):
            file = Path(hub.cached_file(name, file.name, _raise_exceptions_for_missing_entries=False) or file)
    found = preprocessing.of_hugging_face(file)
    size = getattr(config, "image_size", None)
    size = size[0] if isinstance(size, list | tuple) else size
    return _with_side(
        module, int(getattr(config, "num_channels", 3)), side or (None if found else size), found
    )


def _function(package: str, function: str, classes: int | None, side: int | None) -> Model:
    name = f"{package}:{function}"
    with _working_directory_importable():
        try:
            source = importlib.import_module(package)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if package == missing or package.startswith(f"{missing}."):
                raise ConfigError(
                    f"{printable(name)}: no module '{printable(missing)}' here or installed; expected {FORMS}"
                ) from None
            raise ConfigError(
                f"{printable(name)}: its import needs the package '{printable(missing)}'"
            ) from None
        except Exception as error:  # the module is the user's
            raise ConfigError(f"{printable(name)}: its import failed: {_first_line(error)}") from error
    build = getattr(source, function, None)
    if not callable(build):
        names = [each for each, value in vars(source).items() if callable(value) and not each.startswith("_")]
        raise ConfigError(f"{printable(name)}: no such function{_such_as(names[:4])}")
    if classes is not None:
        raise ConfigError(f"{printable(name)}: a function of your own sets the number of classes itself")
    module = _built(name, build)
    return _with_side(module, 3, side, None)


def _with_side(module: nn.Module, channels: int, side: int | None, found: Preprocessing | None) -> Model:
    if side is None:
        side = found.side if found is not None else SIDE
    if found is not None and found.side != side:
        found = replace(found, side=side)
    return Model("", module, (channels, side, side), found)


def _built(name: str, build: Callable[[], Any]) -> nn.Module:
    try:
        module = build()
    except ConfigError:
        raise
    except Exception as error:  # a library's or the user's code
        raise ConfigError(f"{printable(name)}: cannot be built: {_first_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{printable(name)}: gives {type(module).__name__}; expected a torch.nn.Module")
    return module


def _library(package: str, name: str) -> ModuleType:
    try:
        return _imported(package)
    except ModuleNotFoundError as error:
        missing = error.name or package
        raise ConfigError(
            f"{printable(name)}: needs the package '{missing}': pip install {missing}"
        ) from None
    except Exception as error:  # a compiled part that does not fit
        raise ConfigError(
            f"{printable(name)}: {package} cannot be imported beside torch {torch.__version__}: "
            f"{_first_line(error)}"
        ) from error


def _imported(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    # torchvision's compiled operators are built for one release of torch. Classifiers use none of them, but
    # its import needs their names.
    _declare_detection_operators()
    return importlib.import_module(package)


_declared: list[torch.library.Library] = []


def _declare_detection_operators() -> None:
    if not _declared:
        library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """A module that lies where the user is, as `python -c` finds it."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _such_as(names: list[str]) -> str:
    return f"; expected such as {', '.join(map(printable, names))}" if names else ""


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {printable(lines[0])}" if lines else type(error).__name__
