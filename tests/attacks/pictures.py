"""Hostile pictures (``images/``, written by ``make_images.py``) and the one line that each is refused with.

The message follows the file's path. Each is a DataError: it gets no answer, the pictures after it do.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "images"

NO_PICTURE = r"is no PNG or JPEG picture"
DAMAGED = r"is a damaged picture: .+"
TOO_LARGE = r"has too many pixels, expected at most 50,000,000"

EXPECTED = {
    "001-text.png": NO_PICTURE,
    "002-empty.png": r"has 0 bytes, expected 1 … 67108864",
    "003-truncated.png": DAMAGED,
    "004-header-of-20000x20000.png": TOO_LARGE,
    "005-header-of-8000x8000.png": r"is 8000×8000 pixels, expected at most 50,000,000 in all",
    "006-header-of-4-billion-squared.png": TOO_LARGE,
    "007-header-only.png": NO_PICTURE,
    "008-signature-only.png": NO_PICTURE,
    "009-gif.png": NO_PICTURE,
    "010-postscript.png": NO_PICTURE,
    "011-rows-that-do-not-inflate.png": DAMAGED,
    "012-text-chunk-that-inflates-to-4-mb.png": DAMAGED,
    "013-wrong-header-checksum.png": NO_PICTURE,
    "014-truncated.jpg": DAMAGED,
    "015-header-of-65500x65500.jpg": TOO_LARGE,
    "016-16-bit.png": r"has pixels of mode I;16, expected 8 bits a channel",
}
