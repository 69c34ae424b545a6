"""``[data]`` of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from offramp.training.fields import Section, Share


class _DataRecipe(Section):
    """What is learned from: share held out for validation, augmentation (pixels of shift, mirroring)."""

    validation: Share
    shift: Annotated[int, Field(ge=0)] = 0
    flip: bool = False

    def decides(self) -> dict[str, Any]:
        """The fields that decide how training ends, beside the images themselves."""
        return self.model_dump()


class DigitsRecipe(_DataRecipe):
    """scikit-learn's digits; ``test`` is the share held out for reported figures."""

    source: Literal["sklearn-digits"]
    test: Share


class PicturesRecipe(_DataRecipe):
    """Pictures of any origin: their column, the labels' column, the side that they are resized to."""

    image: str = "image"
    label: str = "label"
    size: Annotated[int, Field(ge=8, le=1024)] = 32
    classes: list[str] = Field(default_factory=list)
    """Names by label, where the data has none."""

    @property
    def title(self) -> str:
        """What the data set is called in a bundle's manifest."""
        raise NotImplementedError

    def decides(self) -> dict[str, Any]:
        """Not where the images lie: their hash says which they are."""
        return {name: getattr(self, name) for name in ("validation", "shift", "flip", "size")}


class HubRecipe(PicturesRecipe):
    """A data set of the Hugging Face hub: its configuration if it has several, what trains and tests."""

    source: Literal["hub"]
    name: str
    config: str | None = None
    revision: str | None = None
    train: str = "train"
    test: str = "test"

    @property
    def title(self) -> str:
        """The hub's name for it."""
        return self.name


class LocalRecipe(PicturesRecipe):
    """Files or folders on this machine."""

    train: str | list[str]
    test: str | list[str]

    @property
    def title(self) -> str:
        """The files' or folders' own names, not where they lie."""
        names = [*listed(self.train), *listed(self.test)]
        return ", ".join(Path(name).name for name in names)[:200]


class ParquetRecipe(LocalRecipe):
    """Local Parquet files."""

    source: Literal["parquet"]


class FolderRecipe(LocalRecipe):
    """A folder with one sub-folder a class, for training and for testing."""

    source: Literal["imagefolder"]
    train: str
    test: str


DataRecipe = DigitsRecipe | HubRecipe | ParquetRecipe | FolderRecipe
SOURCES = ("hub", "imagefolder", "parquet", "sklearn-digits")


def listed(files: str | list[str]) -> list[str]:
    """A field that takes one file or several, as a list."""
    return [files] if isinstance(files, str) else files
