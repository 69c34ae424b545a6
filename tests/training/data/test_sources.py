"""Pictures from Parquet files and folders; each kind of bad data is one clear error."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from offramp.common.errors import ConfigError, DataError, OfframpError
from offramp.training import recipe_file as recipes
from offramp.training.app import main
from offramp.training.data.recipe import FolderRecipe, HubRecipe, ParquetRecipe
from offramp.training.data.sources import load

SIZE = 16
CLASSES = ("cat", "dog")
Rows = list[dict[str, Any]]


def png(colour: tuple[int, int, int], size: tuple[int, int] = (SIZE, SIZE), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def rows(count: int = 24) -> Rows:
    """Cats are red, dogs blue; how much so tells the row."""
    return [
        {
            "img": {"bytes": png((100 + i, 0, 9) if i % 2 == 0 else (9, 0, 100 + i)), "path": f"{i}.png"},
            "label": i % 2,
        }
        for i in range(count)
    ]


def write(path: Path, values: Rows) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(values), path)
    return str(path)


def parquet(tmp_path: Path, train: Rows, test: Rows | None = None, **fields: Any) -> ParquetRecipe:
    train_file = write(tmp_path / "train.parquet", train)
    test_file = write(tmp_path / "test.parquet", rows(4) if test is None else test)
    settings: dict[str, Any] = {"image": "img", "size": SIZE, "validation": 0.25, "classes": list(CLASSES)}
    return ParquetRecipe(source="parquet", train=train_file, test=test_file, **(settings | fields))


def test_parquet_files_of_the_hubs_schema(tmp_path: Path) -> None:
    data = load(parquet(tmp_path, rows()), seed=1)
    assert data.classes == CLASSES
    assert data.name == "train.parquet, test.parquet"
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 6, 4)
    for part in (data.train, data.validation, data.test):
        assert part.images.shape == (len(part), 3, SIZE, SIZE)
        assert np.bincount(part.labels).tolist() == [len(part) // 2] * 2
        strong = np.where(part.labels == 0, part.images[:, 0, 0, 0], part.images[:, 2, 0, 0])
        assert (strong >= 100).all()
    held_out = {int(image[:, 0, 0].max()) for image in data.validation.images}
    assert held_out.isdisjoint(int(image[:, 0, 0].max()) for image in data.train.images)
    assert data.test.images[2, 0, 0, 0] == 102


def test_several_files_and_labels_without_names(tmp_path: Path) -> None:
    more = write(tmp_path / "more.parquet", rows(8))
    recipe = parquet(tmp_path, rows(), classes=[])
    data = load(recipe.model_copy(update={"train": [str(recipe.train), more]}), seed=1)
    assert data.classes == ("0", "1")
    assert len(data.train) + len(data.validation) == 32


def test_pictures_are_resized_and_made_rgb(tmp_path: Path) -> None:
    values = rows()
    values[0]["img"]["bytes"] = png((200, 0, 0), (40, 30))
    values[2]["img"]["bytes"] = png((50, 50, 50), mode="L")
    data = load(parquet(tmp_path, values), seed=1)
    everything = np.concatenate([data.train.images, data.validation.images])
    assert everything.shape[1:] == (3, SIZE, SIZE)
    assert (everything == 50).all(axis=(1, 2, 3)).sum() == 1


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    folders(tmp_path)
    data = load(folder_recipe(tmp_path), seed=1)
    assert data.classes == CLASSES
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 4, 4)
    assert (data.test.images[data.test.labels == 1, 2] >= 100).all()


def folders(root: Path) -> None:
    for part, count in (("train", 16), ("test", 4)):
        for number, row in enumerate(rows(count)):
            path = root / part / CLASSES[row["label"]] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row["img"]["bytes"])


def folder_recipe(root: Path) -> FolderRecipe:
    return FolderRecipe(
        source="imagefolder", train=str(root / "train"), test=str(root / "test"), size=SIZE, validation=0.25
    )


def change(index: int, **fields: Any) -> Callable[[Rows], None]:
    def apply(values: Rows) -> None:
        values[index].update(fields)

    return apply


def strings(values: Rows) -> None:
    for row in values:
        row["label"] = CLASSES[row["label"]]


def floats(values: Rows) -> None:
    for row in values:
        row["label"] = row["label"] / 2


def no_pictures(values: Rows) -> None:
    for row in values:
        row["img"] = "cat.png"


def no_column(values: Rows) -> None:
    for row in values:
        del row["label"]


def only_cats(values: Rows) -> None:
    values[:] = values[::2]


def one_dog(values: Rows) -> None:
    values[:] = [*values[::2], values[1]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            change(7, img={"bytes": b"\x89PNG no", "path": "7.png"}),
            r"train: row 7 \(7.png\): is not a picture \(starts with 89 50 4e 47\)",
        ),
        (
            change(7, img={"bytes": png((1, 2, 3))[:-30], "path": None}),
            "train: row 7: is a damaged picture: ",
        ),
        (change(7, img={"bytes": None, "path": None}), "train: row 7 has neither bytes nor a path"),
        (change(7, label=2), "train: row 7 has the label 2, expected 0 … 1"),
        (change(7, label=-1), "train: row 7 has the label -1"),
        (change(7, label=None), "train: row 7 has no label"),
        (strings, "train: label column 'label' holds string, expected integers"),
        (floats, "train: label column 'label' holds float64, expected integers"),
        (no_pictures, "train: picture column 'img' is .*, expected a struct of bytes and path"),
        (no_column, "train: has no label column 'label', expected one of 'img'"),
        (only_cats, "train: class 'dog' has no images"),
        (one_dog, "class 'dog' has 1 images: too few for train and validation"),
    ],
)
def test_bad_rows_are_one_clear_error(tmp_path: Path, damage: Callable[[Rows], None], message: str) -> None:
    values = rows()
    damage(values)
    fails(parquet(tmp_path, values), message)


def fails(recipe: ParquetRecipe | FolderRecipe | HubRecipe, message: str) -> None:
    with pytest.raises(OfframpError, match=message) as error:
        load(recipe, seed=1)
    assert isinstance(error.value, DataError | ConfigError)
    assert "\n" not in str(error.value)


def test_bad_files_are_one_clear_error(tmp_path: Path) -> None:
    good = parquet(tmp_path, rows())
    fails(good.model_copy(update={"train": str(tmp_path / "none")}), "train: .*none is no file")
    (tmp_path / "text").write_text("hello")
    fails(good.model_copy(update={"test": str(tmp_path / "text")}), "test: .*text is no Parquet file")
    fails(good.model_copy(update={"image": "picture"}), "no picture column 'picture', expected one of 'img'")
    fails(parquet(tmp_path, rows()[:1], classes=["cat"]), "the one class 'cat', expected two at least")
    fails(parquet(tmp_path, rows(), test=rows(1)), "test: class 'dog' has no images")


def test_bad_folders_are_one_clear_error(tmp_path: Path) -> None:
    folders(tmp_path)
    recipe = folder_recipe(tmp_path)
    fails(recipe.model_copy(update={"train": str(tmp_path / "none")}), "train: .*none is no folder")
    fails(recipe.model_copy(update={"train": str(tmp_path / "train/cat")}), "has no sub-folders")
    empty = tmp_path / "train" / "bird"
    empty.mkdir()
    fails(recipe, "train: class 'bird' has no images")
    (empty / "notes.txt").write_text("none yet")
    fails(recipe, "train: class 'bird' has no images of a known format: 1 .txt")
    (empty / "notes.txt").unlink()
    (empty / "1.png").write_bytes(rows(1)[0]["img"]["bytes"])
    fails(recipe, "test has the classes 'cat', 'dog', train has 'bird', 'cat', 'dog'")
    empty.rename(tmp_path / "gone")
    (tmp_path / "train" / "cat" / "0.png").write_bytes(b"no picture")
    fails(recipe, r"train: row 0 \(0.png\): is not a picture")


def test_pictures_at_any_depth_are_of_the_top_folders_class(tmp_path: Path) -> None:
    folders(tmp_path)
    cats = tmp_path / "train" / "cat"
    for path in sorted(cats.iterdir())[:3]:
        deep = cats / "2024" / "may" / path.name
        deep.parent.mkdir(parents=True, exist_ok=True)
        path.rename(deep)
    (tmp_path / "train" / ".cache" / "x").mkdir(parents=True)
    (cats / ".thumbnail.png").write_bytes(b"left by a file manager")
    data = load(folder_recipe(tmp_path), seed=1)
    assert data.classes == CLASSES
    assert len(data.train) + len(data.validation) == 16


def test_every_bad_picture_of_both_parts_is_named_at_once(tmp_path: Path) -> None:
    folders(tmp_path)
    bad = [tmp_path / "train" / "cat" / "0.png", tmp_path / "train" / "dog" / "3.png"]
    bad.append(tmp_path / "test" / "dog" / "1.png")
    for path in bad:
        path.write_bytes(b"no picture")
    recipe = folder_recipe(tmp_path)
    with pytest.raises(DataError, match=r"^3 pictures cannot be used \(--skip-bad leaves") as error:
        load(recipe, seed=1)
    for path in bad:
        assert f"({path.name})" in str(error.value)
    lines: list[str] = []
    data = load(recipe, seed=1, skipped=lines.append)
    assert len(lines) == 3
    assert (len(data.train) + len(data.validation), len(data.test)) == (14, 3)
    for path in (tmp_path / "test" / "dog").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="test: class 'dog' has no images"):
        load(recipe, seed=1, skipped=lines.append)


def test_a_recipes_paths_are_relative_to_it(
    tmp_path: Path, recipe_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders(tmp_path / "mine")
    digits = '[data]\nsource = "sklearn-digits"\nvalidation = 0.2\ntest = 0.2\nshift = 1\n'
    data = '[data]\nsource = "imagefolder"\ntrain = "train"\ntest = "test"\nvalidation = 0.25\n'
    path = tmp_path / "mine" / "my.toml"
    path.write_text(recipe_text.replace(digits, data))
    monkeypatch.chdir(tmp_path)
    (read, text), *_ = recipes.read(Path("mine/my.toml"))
    assert len(load(read.data, seed=1).test) == 4
    # Where it lay is no part of what the bundle keeps.
    assert text == path.read_text()
    monkeypatch.chdir(tmp_path / "mine")
    (read, _), *_ = recipes.read(Path("my.toml"))
    assert len(load(read.data, seed=1).test) == 4


def test_folders_in_place_of_the_recipes_data(tmp_path: Path) -> None:
    folders(tmp_path)
    runs = Path(__file__).parents[3] / "runs"
    (recipe, _), *_ = recipes.read(runs / "cifar10-vgg19.toml", only=["entropy0"])
    train, test = str(tmp_path / "train"), str(tmp_path / "test")
    with pytest.raises(
        DataError, match="has the folders 'cat', 'dog', expected the recipe's classes 'airplane'"
    ):
        load(recipe.with_files([train], [test]).data, seed=1)
    mine = recipe.model_copy(update={"data": recipe.data.model_copy(update={"classes": ["dog", "cat"]})})
    data = load(mine.with_files([train], [test]).data, seed=1)
    assert data.classes == ("dog", "cat")
    assert (data.test.images[data.test.labels == 0, 2] >= 9).all()
    with pytest.raises(ConfigError, match="train is a folder, expected one folder each, or"):
        recipe.with_files([train], [str(Path(__file__))])


def test_a_hub_that_cannot_be_reached_or_has_no_such_part(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = HubRecipe(source="hub", name="nobody/nothing", validation=0.1)

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr("datasets.load_dataset", offline)
    fails(recipe, "cannot load nobody/nothing from the hub: no route$")
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: {"train": None})
    fails(recipe, "nobody/nothing has no part 'test', expected one of 'train'")


def test_the_configuration_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def load_dataset(*names: object, revision: object) -> dict[str, None]:
        asked.append((*names, revision))
        return {}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    recipe = HubRecipe(source="hub", name="some/pictures", config="160px", revision="v1", validation=0.1)
    fails(recipe, "some/pictures has no part 'train'")
    assert asked == [("some/pictures", "160px", "v1")]


def test_train_says_so_in_one_line(
    tmp_path: Path, recipe_text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    values = rows()
    values[3]["img"]["bytes"] = b"none"
    files = parquet(tmp_path, values)
    digits = '[data]\nsource = "sklearn-digits"\nvalidation = 0.2\ntest = 0.2\nshift = 1\n'
    assert digits in recipe_text
    path = tmp_path / "my.toml"
    data = f'[data]\nsource = "hub"\nname = "a/b"\nimage = "img"\nvalidation = 0.2\nsize = {SIZE}\n'
    path.write_text(recipe_text.replace(digits, data))
    arguments = [str(path), "--out", str(tmp_path / "out"), "--train-data", str(files.train)]
    assert main(arguments) == 2
    assert "--train-data and --test-data: expected both" in capsys.readouterr().err
    assert main([*arguments, "--test-data", str(files.test)]) == 5
    printed = capsys.readouterr()
    assert printed.err.startswith("offramp train: train: row 3 (3.png): is not a picture (starts with ")
    assert printed.err.count("\n") == 1
