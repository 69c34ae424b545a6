"""A follower's Prometheus metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from offramp.cli.follow.judge import CAUSES

PREFIX = "offramp_follow"


class FollowMetrics:
    """Of one follower."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.polls = Counter(
            f"{PREFIX}_polls",
            "Times that the channel was asked: it was unchanged, named another bundle, named one that was "
            "signed before the current one, or could not be read.",
            ["result"],
            registry=self.registry,
        )
        for result in ("unchanged", "changed", "older", "failed"):
            self.polls.labels(result)
        self.starts = Counter(
            f"{PREFIX}_starts", "Times that the command was started.", registry=self.registry
        )
        self.switches = Counter(
            f"{PREFIX}_switches", "Bundles that became the current one.", registry=self.registry
        )
        self.rollbacks = Counter(
            f"{PREFIX}_rollbacks",
            "Bundles that did not pass their probation, by cause.",
            ["cause"],
            registry=self.registry,
        )
        for cause in CAUSES:
            self.rollbacks.labels(cause)
        self.probation = Gauge(f"{PREFIX}_probation", "1 during a probation.", registry=self.registry)
        self._bundle = Gauge(
            f"{PREFIX}_bundle_info", "The bundle that is run or kept.", ["digest"], registry=self.registry
        )

    def show(self, bundle: str, *, probation: bool) -> None:
        """The bundle of this digest is the one."""
        self._bundle.clear()
        self._bundle.labels(bundle).set(1)
        self.probation.set(probation)
