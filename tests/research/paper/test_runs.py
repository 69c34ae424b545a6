"""Which records are taken."""

import json

import pytest

from offramp.common.errors import DataError
from offramp.training.record import Record
from research.paper import figures, tables
from tests.records import record


def test_runs_that_are_missing_or_there_twice() -> None:
    with pytest.raises(DataError, match="no run of mobilenet-v2 with exit 5"):
        tables.table3([record(12)])
    with pytest.raises(DataError, match="are runs of one configuration"):
        tables.table3([record(5), record(5)])
    with pytest.raises(DataError, match="without a regularised stage"):
        figures.fig6([record(5)])


def test_a_record_survives_json() -> None:
    values = json.loads(record(5).model_dump_json())
    assert Record.model_validate(values) == record(5)
