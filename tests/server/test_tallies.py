from __future__ import annotations

from threading import Thread

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest

from offramp.server.metrics import REASONS, ServerMetrics
from offramp.server.tallies import Tallies, TallyHistogram

BUCKETS = (1e-4, 0.001, 0.5, 1)
VALUES = (0.0, 1e-4, 1.1e-4, 0.001, 0.3, 0.5, 1, 1.0000001, 7)


@pytest.fixture(autouse=True)
def _as_on_the_page() -> None:
    disable_created_metrics()  # type: ignore[no-untyped-call]


def test_the_page_is_the_same_as_prometheus_clients() -> None:
    """Every line of it, the values on a bucket's bound included."""
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    counter = Counter("frames", "Frames.", ["result"], registry=theirs)
    plain = Counter("bytes", "Bytes.", registry=theirs)
    histogram = Histogram("seconds", "Time.", buckets=BUCKETS, registry=theirs)
    tallies = Tallies("frames", "Frames.", ours, "result", ("good", "bad"))
    only = Tallies("bytes", "Bytes.", ours).only
    tally_histogram = TallyHistogram("seconds", "Time.", ours, BUCKETS)
    for result, count in (("good", 3), ("bad", 2)):
        for _ in range(count):
            counter.labels(result).inc()
            tallies[result].inc()
    for amount in (70, 0, 1_000_000):
        plain.inc(amount)
        only.inc(amount)
    for value in VALUES:
        histogram.observe(value)
        tally_histogram.observe(value)
    page = generate_latest(ours).decode()
    assert page == generate_latest(theirs).decode()
    assert 'frames_total{result="good"} 3.0' in page and f"seconds_count {len(VALUES)}.0" in page


def test_names_are_known_before_anything_is_counted() -> None:
    """``/metrics?name[]=…`` finds them, and a second one of the same name is refused."""
    registry = ServerMetrics().registry
    restricted = registry.restricted_registry(
        ["offramp_server_rejected_total", "offramp_server_queue_seconds_count"]
    )
    samples = [sample for each in restricted.collect() for sample in each.samples]
    found = {(sample.name, *sample.labels.values()) for sample in samples}
    assert found == {
        *(("offramp_server_rejected_total", reason) for reason in REASONS),
        ("offramp_server_queue_seconds_count",),
    }
    with pytest.raises(ValueError, match="Duplicated"):
        Tallies("offramp_server_frames", "", registry)


def test_a_scrape_sees_numbers_that_only_rise() -> None:
    """Scraped from another thread while they are counted; at the end all are there."""
    metrics = ServerMetrics()
    seen: list[float] = []
    done = False

    def scrape() -> None:
        while not done:
            value = metrics.registry.get_sample_value("offramp_server_queue_seconds_count")
            assert value is not None
            seen.append(value)

    thread = Thread(target=scrape)
    thread.start()
    while len(seen) < 20 or seen[-1] == seen[0]:
        for _ in range(100):
            metrics.queue_seconds.observe(0.01)
    done = True
    thread.join()
    assert seen == sorted(seen)
    last = metrics.registry.get_sample_value("offramp_server_queue_seconds_bucket", {"le": "+Inf"})
    assert last == metrics.registry.get_sample_value("offramp_server_queue_seconds_count") != 0
