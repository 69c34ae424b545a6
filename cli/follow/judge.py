"""Whether a new bundle does worse than the one before it, from what both said of themselves. Pure.

A device's counters are compared as shares, by their Wilson intervals: only where the two do not overlap is
one worse. What may be the network's fault, or a server's that comes later, is put off, not refused for good.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from offramp.cli.fleet.figures import wilson
from offramp.cli.fleet.pages import Page

AUDITS = 20
"""Audits that say something of a bundle."""
UNSURE = 20
"""Unsure images that say something of its servers."""
MISMATCHES = 2
"""Hellos that were refused before any was accepted: one may have been of a server that another follows."""
WIDTH = 2.58
"""Of the intervals, standard deviations: 99 %."""
WORSE = 0.02
"""Shares that differ by less are the same to a user."""


@dataclass(frozen=True)
class Figures:
    """What a device counted while it ran one bundle."""

    agree: float = 0.0
    differ: float = 0.0
    answered: float = 0.0
    """Unsure images that a server answered."""
    fallback: float = 0.0
    """Unsure images that no server answered."""
    connects: float = 0.0
    mismatches: float = 0.0
    expected_agreement: float = math.nan
    """What the bundle measured itself."""

    def since(self, before: Figures) -> Figures:
        """What was counted since then; all of it where the device has begun again."""
        if any(getattr(self, each.name) < getattr(before, each.name) for each in fields(self)):
            return self
        counted = {
            each.name: getattr(self, each.name) - getattr(before, each.name)
            for each in fields(self)
            if each.name != "expected_agreement"
        }
        return Figures(**counted, expected_agreement=self.expected_agreement)


@dataclass(frozen=True)
class Verdict:
    """Why a bundle is not kept."""

    cause: str
    """One of ``CAUSES``."""
    reason: str
    again: bool
    """Whether it may do better later."""


CAUSES = ("exit", "interrupted", "silent", "mismatch", "unanswered", "audits")


def figures_of(page: Page) -> Figures:
    """A device's figures; those of a server's page are 0."""
    images = "offramp_device_images_total"
    return Figures(
        agree=page.get("offramp_device_audits_total", result="agrees"),
        differ=page.get("offramp_device_audits_total", result="differs"),
        answered=page.get(images, source="server"),
        fallback=page.get(images, source="fallback"),
        connects=page.get("offramp_device_connects_total"),
        mismatches=page.get("offramp_device_hellos_refused_total", reason="mismatch"),
        expected_agreement=page.values.get(("offramp_device_expected_agreement_ratio", ()), math.nan),
    )


def is_of(page: Page, bundle: str) -> bool:
    """Whether whoever wrote the page runs the bundle of this digest."""
    return any(
        name == "offramp_bundle_info" and dict(labels).get("digest") == bundle for name, labels in page.values
    )


def judge(new: Figures, old: Figures | None, *, final: bool = False) -> Verdict | None:
    """Whether the new bundle is worse; None: nothing says so.

    old: of the one before, if that is known. final: whether it has had its time.
    """
    if new.mismatches >= (1 if final else MISMATCHES) and not new.connects:
        return Verdict("mismatch", "no server of its has this bundle", again=True)
    before = old or Figures()
    unsure, unsure_before = new.answered + new.fallback, before.answered + before.fallback
    if unsure >= UNSURE and unsure_before >= UNSURE:
        low, high = interval(new.fallback, unsure)[0], interval(before.fallback, unsure_before)[1]
        if low > high + WORSE:
            return Verdict(
                "unanswered",
                f"{new.fallback:.0f} of {unsure:.0f} unsure images had no answer, before "
                f"{before.fallback:.0f} of {unsure_before:.0f}",
                again=True,
            )
    audits, audits_before = new.agree + new.differ, before.agree + before.differ
    if audits < AUDITS:
        return None
    if audits_before >= AUDITS:
        known, said = (
            interval(before.agree, audits_before)[0],
            f"{before.agree:.0f} of {audits_before:.0f} before",
        )
    elif not math.isnan(new.expected_agreement):
        known, said = new.expected_agreement, f"{new.expected_agreement:.1%} on its test images"
    else:
        return None
    if interval(new.agree, audits)[1] < known - WORSE:
        return Verdict("audits", f"{new.agree:.0f} of {audits:.0f} audits agree, {said}", again=False)
    return None


def interval(hits: float, trials: float) -> tuple[float, float]:
    """Of a share; trials > 0."""
    found = wilson(hits, trials, WIDTH)
    assert found is not None
    return found


class Window:
    """The figures of the last ``seconds``, from what was read of a page now and then."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._read: list[tuple[float, Figures]] = []

    def add(self, at: float, figures: Figures) -> None:
        """What the page says now. at: seconds of any clock that only goes forward."""
        self._read.append((at, figures))
        while len(self._read) > 2 and self._read[1][0] <= at - self._seconds:
            del self._read[0]
        # Bounded however often it is read.
        if len(self._read) > 512:
            self._read[1:-1] = self._read[1:-1:2]

    def figures(self) -> Figures | None:
        """What was counted within the time; None before anything was read."""
        if not self._read:
            return None
        first, last = self._read[0][1], self._read[-1][1]
        return last.since(first) if len(self._read) > 1 else last
