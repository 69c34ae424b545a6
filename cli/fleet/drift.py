"""Drift of a device and of a fleet from the counts on their pages, as ``deploy/prometheus/rules`` has it.

Since the devices started: a window has few images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from offramp.cli.fleet.pages import Page
from offramp.common.drift import IMAGES, deviations, distance, is_drift

NAME = "offramp_device_drift"
KINDS = ("exit", "confidence", "class")
Bins = dict[str, float]


@dataclass(frozen=True)
class Compared:
    """Images by bin: a device's own, and of the bundle's test images."""

    live: Bins
    reference: Bins


def compared(page: Page) -> dict[str, Compared]:
    """What there is to compare, by kind: exit, confidence, class."""
    live: defaultdict[str, Bins] = defaultdict(dict)
    shares: defaultdict[str, Bins] = defaultdict(dict)
    images: Bins = {}
    for (name, pairs), value in page.values.items():
        labels = dict(pairs)
        of, bin_ = labels.get("of", ""), labels.get("bin", "")
        if of not in KINDS:
            continue
        if name == f"{NAME}_images_total":
            live[of][bin_] = value
        elif name == f"{NAME}_reference_ratio":
            shares[of][bin_] = value
        elif name == f"{NAME}_reference_images":
            images[of] = value
    found = {}
    for of, bins in live.items():
        reference = {bin_: share * images.get(of, 0) for bin_, share in shares[of].items()}
        if sum(bins.values()) > 0 and sum(reference.values()) > 0:
            found[of] = Compared(bins, reference)
    return found


def _figures(of: Compared) -> dict[str, Any]:
    bins = sorted(of.live.keys() | of.reference.keys())
    live, reference = ([side.get(bin_, 0.0) for bin_ in bins] for side in (of.live, of.reference))
    return {
        "images": sum(live),
        "bits": distance(live, reference),
        "deviations": deviations(live, reference),
        "drifted": is_drift(live, reference),
    }


def device_drift(page: Page) -> dict[str, dict[str, Any]]:
    """By kind: images, distance in bits, deviations beyond chance, and whether the alert would say so."""
    return {of: _figures(each) for of, each in sorted(compared(page).items())}


def fleet_drift(pages: Sequence[Page]) -> dict[str, dict[str, Any]]:
    """The same of all devices' images together, against their bundles' weighed by these.

    Test images are as few as those of the bundle that has the fewest: many devices with one bundle do not
    make its test images more.
    """
    of_all: defaultdict[str, list[Compared]] = defaultdict(list)
    for page in pages:
        for of, each in compared(page).items():
            of_all[of].append(each)
    found = {}
    for of, several in sorted(of_all.items()):
        live: defaultdict[str, float] = defaultdict(float)
        reference: defaultdict[str, float] = defaultdict(float)
        images = sum(sum(each.live.values()) for each in several)
        fewest = min(sum(each.reference.values()) for each in several)
        for each in several:
            weight = fewest * sum(each.live.values()) / images / sum(each.reference.values())
            for bin_, count in each.live.items():
                live[bin_] += count
            for bin_, count in each.reference.items():
                reference[bin_] += weight * count
        found[of] = _figures(Compared(live, reference))
    return found


def drift(found: dict[str, dict[str, Any]]) -> str:
    """What drifted and by how many bits; where nothing did, the largest distance, without a name."""
    enough = {of: each for of, each in found.items() if each["images"] >= IMAGES}
    if not enough:
        return "–"
    drifted = [f"{of} {each['bits']:.2f}" for of, each in enough.items() if each["drifted"]]
    return ", ".join(drifted) or f"{max(each['bits'] for each in enough.values()):.2f}"
