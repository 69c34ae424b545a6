"""The folders of a run: what is in them, what was passed over, and what could not be listed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from offramp.common.errors import DataError, printable
from offramp.common.inputs.folder import Found, find, kinds_of
from offramp.common.inputs.headers import EXTENSIONS
from offramp.device.sources.watch import GONE

log = logging.getLogger("offramp.edge-device")


class Folders:
    """Folders that are looked at again and again. Each fault is reported once, until it is gone.

    roots: as the command line has them. suffixes: of the files that are looked for; what: what these are.
    """

    def __init__(
        self, roots: Sequence[Path], suffixes: Collection[str] = EXTENSIONS, what: str = "pictures"
    ) -> None:
        self._suffixes, self._what = suffixes, what
        self.roots = tuple(dict.fromkeys(roots))
        self._passed_over: dict[Path, Counter[str]] = {}
        self._faulty: dict[Path, set[Path]] = {}

    def __contains__(self, path: Path) -> bool:
        return path in self.roots

    @property
    def passed_over(self) -> Counter[str]:
        """Files of other kinds at the last look, by suffix; ``""`` for those without one."""
        return sum(self._passed_over.values(), Counter())

    def count(self, root: Path) -> int:
        """How many items a look at one of them would give."""
        found = find(root, self._suffixes)
        return len(found.files) + len(found.faults)

    def look(self, root: Path) -> tuple[Found, dict[Path, DataError]]:
        """What one of them holds, and the faults that were not reported before."""
        found = find(root, self._suffixes)
        new = self._new_faults(root, found)
        if root not in self._passed_over and found.passed_over:
            log.log(
                logging.INFO if found.files else logging.WARNING,
                "%s: %d files passed over that are not %s by their names: %s",
                printable(str(root)),
                found.passed_over.total(),
                self._what,
                kinds_of(found.passed_over),
            )
        self._passed_over[root] = found.passed_over
        return found, new

    def look_at_all(self) -> tuple[Found, dict[Path, DataError]]:
        """The same of all of them. A sub-folder that vanishes meanwhile is gone, and nothing is wrong."""
        whole, new = Found(), dict[Path, DataError]()
        for root in self.roots:
            found, faults = self.look(root)
            whole.files += found.files
            whole.faults |= found.faults
            new |= {
                folder: fault
                for folder, fault in faults.items()
                if folder == root or found.faults[folder].errno not in GONE
            }
        return whole, new

    def _new_faults(self, root: Path, found: Found) -> dict[Path, DataError]:
        before = self._faulty.get(root, set())
        self._faulty[root] = set(found.faults)
        return {
            folder: DataError(f"{folder}: cannot be listed: {error.strerror}")
            for folder, error in found.faults.items()
            if folder not in before
        }
