"""Pictures sent to the whole model in place of activations."""

from pathlib import Path

from offramp.bench.labels import read_labels
from offramp.bench.rival import FORMATS, hybrid_rows, picture_rows
from offramp.common.bundle.load import Bundle
from tests import toy


def test_every_format_has_a_row_with_its_bytes(toy_bundle: Bundle, labelled_images: Path) -> None:
    labels = read_labels(labelled_images, list(toy.CLASSES))

    activation, *rows = picture_rows(toy_bundle, labelled_images, labels)

    assert [row.name for row in rows] == [form.name for form in FORMATS]
    assert activation.payload_bytes_mean == toy_bundle.codec.raw_bytes
    by_name = {row.name: row for row in rows}
    # Lossless ones are answered as the images themselves are.
    assert by_name["raw pixels"].accuracy == by_name["PNG"].accuracy == activation.accuracy
    files = [(labelled_images / name).stat().st_size for name in labels]
    assert 0 < by_name["PNG"].payload_bytes_mean <= sum(files) / len(files)


def test_behind_an_early_exit_only_unsure_images_are_sent(toy_bundle: Bundle, labelled_images: Path) -> None:
    labels = read_labels(labelled_images, list(toy.CLASSES))
    alone = {row.name: row for row in picture_rows(toy_bundle, labelled_images, labels)}

    for row in hybrid_rows(toy_bundle, toy_bundle, labelled_images, labels):
        every = alone[row.name.partition(",")[0]]
        assert row.exit_rate is not None and 0 <= row.exit_rate <= 1
        assert row.payload_bytes_mean <= every.payload_bytes_mean
        assert (row.payload_bytes_mean == 0) == (row.exit_rate == 1)
