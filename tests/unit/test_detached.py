"""Looking actors up: Ray may keep a thread for as long as its GCS is away."""

from __future__ import annotations

import asyncio
import threading

import pytest

from actors.detached import THREADS_MAX, LookUps


async def test_who_asks_meanwhile_shares_one_look_and_it_outlives_whoever_gives_up() -> None:
    looks, go_on = [], threading.Event()

    def look() -> str:
        looks.append("look")
        go_on.wait()
        return "found"

    look_ups = LookUps()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await look_ups.find("calendar", look)
    asking = [asyncio.create_task(look_ups.find("calendar", look)) for _ in range(50)]
    await asyncio.sleep(0)
    go_on.set()
    assert await asyncio.gather(*asking) == ["found"] * 50
    assert looks == ["look"]
    assert await look_ups.find("calendar", look) == "found"
    assert looks == ["look"] * 2, "what was found is not kept"
    look_ups.close()
    with pytest.raises(RuntimeError):
        await look_ups.find("calendar", look)


async def test_looks_that_hang_leave_everybody_elses_threads_free() -> None:
    go_on = threading.Event()
    look_ups = LookUps()
    before = threading.active_count()
    hanging = [asyncio.create_task(look_ups.find(str(number), go_on.wait)) for number in range(64)]
    await asyncio.sleep(0)
    try:
        async with asyncio.timeout(5):
            assert await asyncio.to_thread(str, 1) == "1"
        assert threading.active_count() <= before + THREADS_MAX + 1, "one is of the event loop"
    finally:
        go_on.set()
        await asyncio.gather(*hanging)


async def test_a_failure_is_told_to_all_who_asked_and_the_next_look_is_a_new_one() -> None:
    answers = iter([ConnectionError("not connected"), None])

    def look() -> None:
        if (failure := next(answers)) is not None:
            raise failure

    look_ups = LookUps()
    told = await asyncio.gather(*(look_ups.find("all", look) for _ in range(3)), return_exceptions=True)
    assert {type(each) for each in told} == {ConnectionError}
    await look_ups.find("all", look)
