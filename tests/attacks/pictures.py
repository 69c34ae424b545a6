"""Hostile pictures (``images/``, written by ``make_images.py``) and the one line that each is refused with.

The message follows the file's path. Each is a DataError: it gets no answer, the pictures after it do.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "images"

NO_PICTURE = r"is not a picture \(starts with [0-9a-f ]{11}\), expected PNG, JPEG, WebP, .+"
DAMAGED = r"is a damaged picture: .+"
BAD_HEADER = r"is a damaged [A-Z]+ picture: its header cannot be read"
MOST = r", expected at most 50,000,000 in all"
TOO_LONG = r", expected sides of at most 65,500"

EXPECTED = {
    "001-text.png": NO_PICTURE,
    "002-empty.png": r"is empty, expected 1 … 67108864 bytes",
    "003-truncated.png": DAMAGED,
    "004-header-of-20000x20000.png": r"has too many pixels, expected at most 50,000,000",
    "005-header-of-8000x8000.png": r"is 8000×8000 pixels" + MOST,
    "006-header-of-4-billion-squared.png": r"has too many pixels, expected at most 50,000,000",
    "007-header-only.png": BAD_HEADER,
    "008-signature-only.png": BAD_HEADER,
    "009-gif-cut-in-its-header.png": BAD_HEADER,
    "010-postscript.png": NO_PICTURE,
    "011-rows-that-do-not-inflate.png": DAMAGED,
    "012-text-chunk-that-inflates-to-4-mb.png": DAMAGED,
    "013-wrong-header-checksum.png": BAD_HEADER,
    "014-truncated.jpg": DAMAGED,
    "015-header-of-65500x65500.jpg": r"is 65500×65500 pixels, expected at most 200,000,000 in all",
    "016-32-bit-without-a-range.tif": r"has 32-bit pixels of 128 … 128: 8-bit or 16-bit values, .+",
    "017-1x50000000.png": r"is 1×50000000 pixels" + TOO_LONG,
    "018-60000x8.png": r"is 60000×8 pixels, expected a side of at most 1,000 times the other",
    "019-6500-scans.jpg": r"has over 100 scans, expected at most as many",
    "020-50-scans-of-36-megapixels.jpg": r"has \d\d scans of 36,000,000 pixels, expected at most .+ in all",
    "021-header-of-16383x16383.webp": r"is 16383×16383 pixels" + MOST,
    "022-screen-of-65535x65535.gif": r"has too many pixels, expected at most 50,000,000",
    "023-header-of-100000x100000.bmp": r"has too many pixels, expected at most 50,000,000",
    "024-65000-tags-of-the-whole-file.tif": r"is a TIFF without a width",
    "025-more-strips-than-rows.tif": r"is a TIFF of 60000 strips or tiles, its sides make 1",
    "026-one-tile-of-65536x65536.tif": r"is a TIFF of 8×8 pixels in tiles of 65536×65536",
    "027-jpeg-in-a-tiff.tif": r"is a TIFF of compression 7, expected one of none, LZW, Deflate, PackBits",
    "028-header-of-60000x60000.tif": r"is 60000×60000 pixels" + MOST,
    "029-strips-of-no-rows.tif": r"is a TIFF with strips of no rows",
    "030-directory-behind-the-end.tif": r"is a damaged TIFF: its directory ends after the file",
    "031-avif-of-nothing.avif": r"is (HEIC or AVIF: pip install .+|a damaged AVIF picture: .+)",
    "032-progressive-of-13000x13000.jpg": r"is 13000×13000 pixels, expected at most 64,000,000 in all",
    "033-first-scan-of-one-colour.jpg": r"is 13000×13000 pixels, expected at most 64,000,000 in all",
}
