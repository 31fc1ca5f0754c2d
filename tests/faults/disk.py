"""A small disk for PostgreSQL, in memory, that can be filled to the last byte. Mounting it takes root on Linux."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

from cluster.processes import UNPRIVILEGED

MEBIBYTES = 3072
"""Room for a long campaign; what is left of it is filled in one go."""
PIECE_BYTES = 8 << 20


class SmallDisk:
    """A file system at ``path``; ``mount`` it before anything is put there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._filling = path / "filling"
        self.mounted = False

    def mount(self) -> None:
        """Have it, where that may be done."""
        if os.geteuid() != 0:
            return
        options = f"size={MEBIBYTES}m,mode=700,uid={UNPRIVILEGED},gid={UNPRIVILEGED}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self._path)]
        self._path.mkdir()
        self.mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
        if not self.mounted:
            self._path.rmdir()

    def unmount(self) -> None:
        """Have it no longer."""
        if self.mounted:
            subprocess.run(["umount", str(self._path)], check=True, capture_output=True)
            self.mounted = False

    def fill(self) -> None:
        """Leave no byte."""
        with self._filling.open("wb", buffering=0) as file:
            piece = bytes(PIECE_BYTES)
            while piece:
                try:
                    file.write(piece)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    piece = piece[: len(piece) // 2]

    def free(self) -> None:
        """Give back what was filled."""
        self._filling.unlink(missing_ok=True)
