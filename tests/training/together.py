"""One of several processes that train together: ``python -m tests.training.together RECIPE OUT CHECKPOINTS``.

Of RECIPE, whose backbone is "tiny", it makes a bundle, as ``torchrun -m offramp.training.app`` would.
"""

import sys

from offramp.training.app import main
from tests.training.conftest import with_tiny

if __name__ == "__main__":
    recipe, out, checkpoints = sys.argv[1:]
    with with_tiny():
        arguments = [recipe, "--out", out, "--checkpoints", checkpoints, "--device", "cpu", "--json"]
        sys.exit(main([*arguments, "--resume"]))
