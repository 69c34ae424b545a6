"""Run inside a device image: what the head of /bundle says of each picture in /images, one JSON line each.

Two machines that print the same lines send the same bytes. ``frame`` is of a whole serialized message.
"""

import ctypes
import hashlib
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from offramp.common.bundle.load import load_bundle
from offramp.common.part.engine import Engine
from offramp.common.wire.frame import Frame, FrameWriter
from offramp.device import preprocess
from offramp.device.head import run_head

bundle = load_bundle("/bundle")
engine = Engine(bundle, 1)
engine.load_head()
writer = FrameWriter()
runs = {name: version(name) for name in ("numpy", "onnxruntime")}
about: dict[str, object] = {"machine": platform.machine(), "python": platform.python_version(), **runs}
if about["machine"] == "aarch64":
    # AT_HWCAP's ASIMDDP, and AT_HWCAP2's I8MM.
    auxiliary = ctypes.CDLL(None).getauxval
    auxiliary.argtypes, auxiliary.restype = [ctypes.c_ulong], ctypes.c_ulong
    about["dot_products"] = bool(auxiliary(16) >> 20 & 1)
    about["matrix_products"] = bool(auxiliary(26) >> 13 & 1)
print(json.dumps(about))
pictures = sorted(path for path in Path("/images").iterdir() if path.suffix in (".jpg", ".png"))
for number, path in enumerate(pictures[: int(sys.argv[1])], 1):
    found = run_head(engine, preprocess(path.read_bytes(), bundle))
    codec, payload = bundle.codec.encode(found.symbols)
    line = {
        "name": path.name,
        "class": found.class_index,
        "confidence": found.confidence,
        "symbols": hashlib.sha256(found.symbols.tobytes()).hexdigest(),
        "frame": hashlib.sha256(writer.pack([Frame(number, int(codec), payload)])).hexdigest(),
        "bytes": len(payload),
    }
    print(json.dumps(line), flush=True)
