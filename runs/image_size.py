"""Called by image-size.sh: the mounted file systems of the images, one folder each."""

import platform
import sys
from pathlib import Path

PARTS = {
    "Python and Debian's libraries": ("usr", "var", "etc"),
    "ONNX Runtime": ("onnxruntime",),
    "NumPy": ("numpy", "numpy.libs"),
    "gRPC": ("grpc", "grpc_health", "grpc_reflection"),
    "Pillow": ("PIL", "pillow.libs"),
    "Offramp": ("offramp",),
}
PACKAGES = Path("usr/local/lib/python3.11/dist-packages")


def megabytes(*folders: Path) -> float:
    """Size of all plain files in these folders, MB of 10^6 bytes."""
    return (
        sum(
            file.lstat().st_size
            for folder in folders
            for file in folder.rglob("*")
            if file.is_file() and not file.is_symlink()
        )
        / 1e6
    )


def main() -> None:
    """Print the table."""
    roots = [Path(root) for root in sys.argv[1:]]
    print(f"Debian 12, Python 3.11, {platform.machine()}; MB of 10^6 bytes, uncompressed\n")
    print("| | " + " | ".join(root.name for root in roots) + " |")
    print("|---|" + "---:|" * len(roots))
    listed = [0.0] * len(roots)
    for part, names in PARTS.items():
        sizes = []
        for index, root in enumerate(roots):
            if part.startswith("Python"):
                size = megabytes(root) - megabytes(root / PACKAGES)
            else:
                size = megabytes(*(root / PACKAGES / name for name in names))
            listed[index] += size
            sizes.append(f"{size:.1f}")
        print(f"| {part} | " + " | ".join(sizes) + " |")
    totals = [megabytes(root) for root in roots]
    rest = [f"{total - known:.1f}" for total, known in zip(totals, listed, strict=True)]
    print("| other packages | " + " | ".join(rest) + " |")
    print("| **image** | " + " | ".join(f"**{total:.1f}**" for total in totals) + " |")


main()
