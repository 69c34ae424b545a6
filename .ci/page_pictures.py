"""Writes the pictures of the live page in docs/, of the demo's programs in a real Chromium:

python .ci/page_pictures.py [--bundle DIR --images DIR --threshold T]
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.browser import browser  # noqa: E402 - from the tree
from tests.processes import processes  # noqa: E402

MINUTE = 62.0
"""Until the chart of the last minute is full."""


def main() -> None:
    """Start both programs, and take pictures of their pages: light, dark, and at a phone's width."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=ROOT / "models" / "digits-mobilenetv2-exit12")
    parser.add_argument("--images", type=Path, default=ROOT / "examples" / "digits")
    parser.add_argument("--threshold", default="0.99")
    parser.add_argument("--rate", default="10")
    arguments = parser.parse_args()
    with processes(arguments.bundle) as run:
        server = run.server("--page")
        flags = [
            "--threshold",
            arguments.threshold,
            "--rate",
            arguments.rate,
            "--page",
            "--metrics-port",
            "0",
        ]
        device = run.start_device("--server", server.address, *flags, "--repeat", "--quiet", arguments.images)
        page = device.wait_for(r"page on (\S+)")[1]
        with browser() as tab:
            for url, looks in (
                (page, (("light", 1280, 840, False), ("dark", 1280, 840, True), ("phone", 390, 980, True))),
                (server.metrics_url.removesuffix("metrics"), (("server", 1280, 620, False),)),
            ):
                tab.open(url)
                tab.until("document.querySelector('#news')?.textContent === 'live'")
                time.sleep(MINUTE)
                for name, width, height, dark in looks:
                    tab.look(width=width, height=height, dark=dark)
                    time.sleep(2)
                    save(ROOT / "docs" / f"page-{name}.png", tab.picture())
            if tab.complaints:
                raise SystemExit("\n".join(tab.complaints))


def save(path: Path, png: bytes) -> None:
    """Write a picture with a palette, which also has the colours of a few pixels."""
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
    picture.save(path, optimize=True)
    print(f"{re.sub('.*/docs', 'docs', str(path))}: {path.stat().st_size / 1e3:.0f} kB, {picture.size}")


main()
