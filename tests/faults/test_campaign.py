from __future__ import annotations

from tests.faults.campaign import SLOW_S, Struck, _slow


def test_what_lasted_amid_others_is_told_with_those_beside_it() -> None:
    struck = [
        Struck(name="over before", since=0, until=10),
        Struck(name="quick", since=12, until=14),
        Struck(name="after it", since=10 + SLOW_S + 2, until=10 + SLOW_S + 3),
        Struck(name="slow", since=10, until=10 + SLOW_S + 1),
    ]
    assert _slow(struck[:2]) == []
    (note,) = _slow(struck)
    assert note == f"slow: {SLOW_S + 1:.0f} s until all was well again, beside quick (2 to 4 s)"
