"""Run inside a finished image of one extra (device, server): is all there that its program needs?"""

import io
import sys


def device() -> None:
    """Import all of the device, write and read the kinds of picture that it takes."""
    import numpy as np
    from PIL import Image

    import offramp.device.app
    import offramp.device.device
    import offramp.device.sources.source
    import offramp.device.spool.spool  # noqa: F401

    picture = Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3))
    for kind in ("PNG", "JPEG"):
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        Image.open(io.BytesIO(buffer.getvalue())).resize((8, 8), Image.Resampling.BILINEAR).load()


def server() -> None:
    """Import all of the server."""
    import uvloop  # noqa: F401

    import offramp.server.app
    import offramp.server.service  # noqa: F401


def pictures() -> None:
    """Write and read a picture of an image that is unsure twice."""
    import numpy as np

    from offramp.common.wire.picture import decode_picture, encode_picture, require_webp

    require_webp("--pictures")
    decode_picture(encode_picture(np.zeros((3, 16, 16), np.uint8), 20), 16, 16)


{"device": device, "server": server}[sys.argv[1]]()
pictures()

from offramp.common.codec.activation import coder_kind  # noqa: E402

if coder_kind() != "compiled":
    raise SystemExit("the compiled coder is missing")
