from __future__ import annotations

import os
import threading
import time
import uuid

from persistence.identifiers import DRAWN_AT_ONCE, new_id


def test_an_id_is_a_uuid_of_version_7_and_of_now() -> None:
    before = time.time_ns() // 1_000_000
    made = [new_id() for _ in range(3 * DRAWN_AT_ONCE)]
    after = time.time_ns() // 1_000_000
    for text in made:
        parsed = uuid.UUID(text)
        assert str(parsed) == text
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
        assert before <= parsed.int >> 80 <= after
    assert len(set(made)) == len(made)
    assert {text[19] for text in made} == set("89ab"), "both bits beside the variant are random"


def test_threads_never_get_the_same_id() -> None:
    made: list[list[str]] = [[] for _ in range(4)]

    def make(ids: list[str]) -> None:
        ids.extend(new_id() for _ in range(5000))

    threads = [threading.Thread(target=make, args=(ids,)) for ids in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each for ids in made for each in ids}) == 20_000


def test_a_forked_process_draws_bits_of_its_own() -> None:
    new_id()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, new_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reading, 36).decode()
    assert theirs[20:] != new_id()[20:]
