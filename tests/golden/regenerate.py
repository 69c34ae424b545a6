"""Write the golden vectors again: ``python tests/golden/regenerate.py``.

Only for a new format, under a new format or protocol version: bundles and devices in the field hold to the
old one. No test runs this.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.golden.vectors import FOLDER, files

    for name, text in files().items():
        (FOLDER / name).write_text(text)
        print(f"wrote {FOLDER / name}")
