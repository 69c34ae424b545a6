"""Pictures sent to the whole model in place of activations."""

from pathlib import Path

from PIL import Image

from offramp.bench.labels import labels_of
from offramp.bench.rival import FORMATS, Row, coded_pictures, hybrid_rows, picture_rows
from offramp.common.bundle.load import Bundle
from offramp.common.inputs.formats import RAW_PIXELS
from tests import toy


def test_every_format_has_a_row_with_its_bytes(toy_bundle: Bundle, labelled_images: Path) -> None:
    labels = labels_of(labelled_images, list(toy.CLASSES))

    activation, *rows = picture_rows(toy_bundle, coded_pictures(toy_bundle, labelled_images, labels), labels)

    assert [row.name for row in rows] == [form.name for form in FORMATS]
    assert activation.payload_bytes_mean == toy_bundle.codec.raw_bytes
    by_name = {row.name: row for row in rows}
    # Lossless ones are answered as the images themselves are.
    assert by_name["raw pixels"].accuracy == by_name["PNG"].accuracy == activation.accuracy
    files = [(labelled_images / name).stat().st_size for name in labels]
    assert 0 < by_name["PNG"].payload_bytes_mean <= sum(files) / len(files)


def test_behind_an_early_exit_the_rival_has_its_best_threshold(
    toy_bundle: Bundle, labelled_images: Path
) -> None:
    labels = labels_of(labelled_images, list(toy.CLASSES))
    coded = coded_pictures(toy_bundle, labelled_images, labels)
    alone = {row.name: row for row in picture_rows(toy_bundle, coded, labels)}

    def rows(accuracy: float) -> list[Row]:
        return hybrid_rows(toy_bundle, coded, labelled_images, labels, accuracy)

    for free, best in zip(rows(0), rows(1.1), strict=True):
        assert free.payload_bytes_mean == 0 and free.exit_rate == 1
        assert best.accuracy >= free.accuracy
        assert best.payload_bytes_mean <= alone[best.name.partition(",")[0]].payload_bytes_mean
        # What the best one reaches, the cheapest one at that accuracy reaches for no more.
        form = best.name.partition(",")[0]
        (cheapest,) = (row for row in rows(best.accuracy) if row.name.partition(",")[0] == form)
        assert cheapest.accuracy >= best.accuracy
        assert cheapest.payload_bytes_mean <= best.payload_bytes_mean


def test_a_picture_larger_than_the_input_is_sent_at_the_inputs_size(
    toy_bundle: Bundle, labelled_images: Path
) -> None:
    labels = labels_of(labelled_images, list(toy.CLASSES))
    (raw,) = (each for each in coded_pictures(toy_bundle, labelled_images, labels) if each.form is RAW_PIXELS)
    large = labelled_images.parent / "large"
    large.mkdir()
    for name in labels:
        with Image.open(labelled_images / name) as picture:
            picture.resize((4 * picture.width, 4 * picture.height)).save(large / name)
    (coded,) = (each for each in coded_pictures(toy_bundle, large, labels) if each.form is RAW_PIXELS)
    wanted = toy_bundle.manifest.preprocessing
    assert set(coded.sizes) == {3 * wanted.height * wanted.width}
    assert raw.sizes.mean() <= coded.sizes.mean()
