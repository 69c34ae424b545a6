"""Called by ``make dist`` with its folder: both archives have what they must have."""

import sys
import tarfile
import zipfile
from pathlib import Path

SOURCE = {
    "LICENSE",
    "README.md",
    "pyproject.toml",
    "offramp/common/codec/kernel/ans.h",
    "offramp/common/codec/kernel/bytes.h",
    "offramp/common/codec/kernel/rans.h",
    "offramp/common/codec/kernel/coder.h",
    "offramp/common/codec/kernel/module.c",
    "offramp/v1/inference.proto",
    "offramp/ray/app.py",
}
WHEEL = {
    "offramp/common/codec/_kernel.abi3.so",
    "offramp/__init__.py",
    "offramp/py.typed",
    "offramp/common/codec/kernel/rans.c",
    "offramp/common/codec/kernel/rans.h",
    "offramp/cli/export_c/c/offramp.h",
    "offramp/cli/export_c/c/Makefile",
    "offramp/common/page/index.html",
    "offramp/common/page/page.css",
    "offramp/common/page/page.js",
    "offramp/common/py.typed",
    "offramp/device/app.py",
    "offramp/server/app.py",
    "offramp/ray/app.py",
    "offramp/v1/inference.proto",
    "offramp/v1/inference_pb2.py",
}


def check(archive: Path, names: set[str], wanted: set[str]) -> None:
    """End the program where a file is missing."""
    if missing := sorted(wanted - names):
        raise SystemExit(f"{archive.name}: lacks {', '.join(missing)}")
    print(f"{archive.name}: {len(names)} files, {archive.stat().st_size / 1e3:,.0f} kB")


def main() -> None:
    """Look into both archives."""
    folder = Path(sys.argv[1])
    (source,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    with tarfile.open(source) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    if built := sorted(name for name in names if name.endswith(".so")):
        raise SystemExit(f"{source.name}: has {', '.join(built)}, expected sources only")
    check(source, names, SOURCE)
    if "-cp311-abi3-" not in wheel.name:
        raise SystemExit(f"{wheel.name}: expected a wheel for every CPython from 3.11 on, cp311-abi3")
    with zipfile.ZipFile(wheel) as archive:
        found = set(archive.namelist())
    if not any(name.endswith("dist-info/licenses/LICENSE") for name in found):
        raise SystemExit(f"{wheel.name}: lacks its licence")
    check(wheel, found, WHEEL)


main()
