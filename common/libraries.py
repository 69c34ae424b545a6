"""What libraries must be kept from doing; every program imports this before it imports them.

ONNX Runtime has telemetry: from when it is imported it reports its use to its maker, and keeps what it could
not send in the home folder. To import this module turns that off. NumPy's BLAS starts a thread for each core
as it is imported; where a container pays for fewer, that is limited here as well.
"""

from __future__ import annotations

import os

from offramp.common.cpus import limit_libraries

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
limit_libraries()
