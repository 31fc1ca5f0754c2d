"""The user that runs PostgreSQL and Valkey: whoever starts zapis, but nobody where that is root.

What that user is to run, enter or read has to be within its reach: that is seen to here.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

from cluster.processes import UNPRIVILEGED, StartFailed


def can_run(program: Path) -> bool:
    """Whether the user who shall run it can."""
    try:
        subprocess.run(
            [program, "--version"], check=True, capture_output=True, cwd="/", timeout=30, **_as_unprivileged()
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def copy_for_all(source: Path, target: Path, but: tuple[str, ...] = ()) -> None:
    """Copy a tree once, readable for everyone, as are the directories that are made for it."""
    if target.exists():
        return
    made = [parent for parent in target.parents if not parent.exists()]
    new = target.with_name(target.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(source, new, symlinks=True, ignore=shutil.ignore_patterns(*but))
    for path in (*made, new, *new.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
    new.rename(target)


def own_directory(path: Path) -> None:
    """Make a directory for the user who runs a server, one that this user can enter."""
    user = UNPRIVILEGED if os.geteuid() == 0 else os.geteuid()
    if not path.exists():
        path.mkdir(mode=0o700)
        give_away(path)
    if (owner := path.stat().st_uid) != user:
        raise StartFailed(f"{path} belongs to user {owner}; start zapis as the user that made it")
    script = 'for d; do test -x "$d" || { printf %s "$d"; exit 1; }; done'
    ways = [str(parent) for parent in (*reversed(path.parents), path)]
    answer = subprocess.run(
        ["/bin/sh", "-c", script, "sh", *ways],
        capture_output=True,
        text=True,
        cwd="/",
        timeout=30,
        **_as_unprivileged(),
    )
    if answer.returncode != 0:
        raise StartFailed(
            f"user {user}, who runs {path.name}, may not enter {answer.stdout}: "
            f"allow it (chmod o+x {answer.stdout}) or choose another ZAPIS_DATA_DIR"
        )


def give_away(path: Path) -> None:
    """Let the user who runs a server have a file or directory that was made for it."""
    if os.geteuid() == 0:
        os.chown(path, UNPRIVILEGED, UNPRIVILEGED)


def _as_unprivileged() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    return {"user": UNPRIVILEGED, "group": UNPRIVILEGED, "extra_groups": []}
