"""A clock for the calendar actors that can be put forward and back while they run (``clock.c``)."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")


class ActorsClock:
    """What the processes of a cluster's nodes take for the time. Without a C compiler it goes right, always."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "seconds-off"
        self._library = directory / "clock.so"
        self.adjustable = shutil.which("gcc") is not None

    def prepare(self) -> None:
        """Make what ``environment`` names."""
        if self.adjustable:
            self.step_to(0)
            command = ["gcc", "-O2", "-shared", "-fPIC", "-o", str(self._library), str(SOURCE)]
            subprocess.run(command, check=True, timeout=60)

    @property
    def environment(self) -> dict[str, str]:
        """What a process must have in its environment to go by it."""
        return {"LD_PRELOAD": str(self._library), "FAULTS_CLOCK": str(self._file)} if self.adjustable else {}

    def step_to(self, seconds_off: int) -> None:
        """From now on it is so far ahead of the right time."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("=q", seconds_off))
