"""Research measures with the fixtures of the benchmarks."""

from tests.bench.conftest import labelled_images

__all__ = ["labelled_images"]
