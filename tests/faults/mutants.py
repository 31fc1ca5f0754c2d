"""What the harness would catch: zapis with one thing broken, as a tired person might break it.

A mutant runs from copies of two packages, with some lines changed, which its processes import before the real ones.
What stands behind something else that would have to break too, as the epoch behind the sequence, only the simulation
and the tests of the transaction can show.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("actors", "persistence")
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One change, and the faults under which it shows."""

    name: str
    faults: tuple[str, ...]
    """Names of nemeses; without any, what clients do is enough."""
    file: str
    written: str
    instead: str

    def write(self, directory: Path) -> Path:
        """Copies of the packages with the change in them; returns where."""
        for package in PACKAGES:
            shutil.copytree(REPOSITORY / package, directory / package, ignore=shutil.ignore_patterns("__pycache__"))
        # Imported at once: Ray puts the paths of who calls before those of its workers.
        (directory / "sitecustomize.py").write_text("".join(f"import {package}\n" for package in PACKAGES))
        path = directory / self.file
        path.write_text(self._changed(path.read_text(encoding="utf-8")), encoding="utf-8")
        return directory

    def _changed(self, text: str) -> str:
        assert text.count(self.written) == 1, f"{self.name}: {text.count(self.written)} places look as it did"
        return text.replace(self.written, self.instead)


ACTOR = "actors/calendar_actor.py"
MUTANTS = (
    Mutant(
        name="answers before it commits",
        faults=("actor killed", "PostgreSQL stopped, started"),
        file=ACTOR,
        written="        self._waiting.append(entry)\n        self._idle.clear()\n",
        instead="        self._waiting.append(entry)\n"
        '        if type(entry.command).__name__ == "BookAppointment":\n'
        "            entry.reply.set_result(entry.outcome)\n",
    ),
    Mutant(
        name="takes the unknown for a no",
        faults=("replies to COMMIT swallowed",),
        file=ACTOR,
        written="                await self._recover(entries, claim=True)\n",
        instead="                for entry in entries:\n"
        '                    self._settle(entry, Rejected(code="slot_taken", detail="not so"))\n',
    ),
    Mutant(
        name="takes a conflict for a success",
        faults=("backends terminated mid-commit",),
        file="persistence/journal.py",
        written="            raise _definite(error) from error\n",
        instead="            if not isinstance(_definite(error), Conflict):\n"
        "                raise _definite(error) from error\n"
        "            return {}\n",
    ),
    Mutant(
        name="stores no answers",
        faults=("replies to COMMIT swallowed",),
        file="actors/entries.py",
        written="        if entry.stores_answer:\n",
        instead="        if False:\n",
    ),
    Mutant(
        name="a move has no durable row",
        faults=("API process killed", "actor killed"),
        file="actors/entries.py",
        written="            if move is not None:\n",
        instead="            if False:\n",
    ),
)
