"""Every message survives the wire, every rejection pickling and its plain form."""

import pickle
import types
from collections import abc
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, get_args, get_origin, get_type_hints

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors import messages
from actors.client import decode_batch, decode_replies, encode_batch, encode_replies
from actors.errors import REJECTIONS, Rejection, from_plain
from actors.messages import (
    COMMANDS,
    EVENTS,
    REPLIES,
    WIRE_VERSION,
    AppointmentStatus,
    Batch,
    BookAppointment,
    Command,
    Done,
    HoldSlot,
    NotDecided,
    RefusedFor,
    Reply,
    Requester,
    Role,
    from_wire,
    wire_name,
)
from tests.given import OPENS, ask

instants = st.integers(0, 10**9).map(lambda seconds: OPENS + timedelta(seconds=seconds, microseconds=seconds % 7))
texts = st.text(max_size=5)
plain = st.dictionaries(texts, st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts, max_size=3)


def strategy_for(annotation: Any) -> st.SearchStrategy[Any]:
    """Any value of a field; what is free-form is plain data, as it is everywhere after the first wire."""
    arguments = get_args(annotation)
    match get_origin(annotation) or annotation:
        case types.UnionType:
            return st.one_of([strategy_for(each) for each in arguments])
        case abc.Mapping:
            return plain
        case kind if kind is tuple:
            return st.lists(strategy_for(arguments[0]), max_size=2).map(tuple)
        case types.NoneType:
            return st.none()
        case kind if kind is str:
            return texts
        case kind if kind is bool:
            return st.booleans()
        case kind if kind is int:
            return st.integers(0, 2**31)
        case kind if kind is datetime:
            return instants
        case kind if issubclass(kind, StrEnum):
            return st.sampled_from(kind)
        case kind:
            return strategy_of(kind)


def strategy_of(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Any message of a kind."""
    return st.builds(kind, **{name: strategy_for(annotation) for name, annotation in get_type_hints(kind).items()})


commands = st.one_of([strategy_of(kind) for kind in COMMANDS])
replies = st.one_of([strategy_of(kind) for kind in REPLIES])


@pytest.mark.parametrize("kind", [*COMMANDS, *EVENTS, *REPLIES], ids=lambda kind: kind.__name__)
def test_every_message_survives_the_wire(kind: type[Any]) -> None:
    @settings(max_examples=20)
    @given(strategy_of(kind))
    def survives(message: Any) -> None:
        received = from_wire(wire_name(message), orjson.loads(orjson.dumps(message)))
        assert received == message
        assert type(received) is kind
        assert hash_or_none(received) == hash_or_none(message)

    survives()


def hash_or_none(message: Any) -> int | None:
    """A list in place of a tuple would compare unequal, and would not hash."""
    return hash(message) if isinstance(message, Command) else None


@pytest.mark.parametrize("kind", [*COMMANDS, *EVENTS, *REPLIES], ids=lambda kind: kind.__name__)
def test_fields_that_a_newer_sender_adds_are_ignored_at_every_depth(kind: type[Any]) -> None:
    @settings(max_examples=20)
    @given(strategy_of(kind))
    def ignored(message: Any) -> None:
        assert from_wire(kind.__name__, with_more(message)) == message

    ignored()


def with_more(value: Any) -> Any:
    """The wire form of a value as a newer release might write it."""
    if is_dataclass(value):
        return {field.name: with_more(getattr(value, field.name)) for field in fields(value)} | {"newer": {"x": [1]}}
    if isinstance(value, tuple):
        return [with_more(each) for each in value]
    return orjson.loads(orjson.dumps(value))


def test_fields_that_an_older_sender_leaves_out_take_their_default() -> None:
    command = ask(BookAppointment, appointment_id="a", slot_id="s", patient_id="p")
    data = orjson.loads(orjson.dumps(command))
    for field in ("deadline", "respond_async", "override", "hold_id", "reason"):
        del data[field]

    assert from_wire("BookAppointment", data) == command


def test_what_is_missing_without_a_default_or_unknown_is_an_error() -> None:
    with pytest.raises(KeyError):
        from_wire("Nonsense", {})
    with pytest.raises(TypeError):
        from_wire("HoldSlot", {"command_id": "c"})
    with pytest.raises(ValueError, match="not a valid"):
        from_wire("NotDecided", {"why": "because"})


def test_every_message_has_a_name_of_its_own() -> None:
    names = [kind.__name__ for kind in (*COMMANDS, *EVENTS, *REPLIES)]

    assert len(set(names)) == len(names)
    assert {kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, Command)} == {
        Command,
        *COMMANDS,
    }


# Batches


@settings(max_examples=50)
@given(st.integers(0, 2**40), st.integers(1, 2**40), instants, st.lists(commands, max_size=5))
def test_a_batch_survives_the_wire(generation: int, number: int, sent_at: datetime, sent: list[Command]) -> None:
    batch = Batch(generation=generation, sender="api", number=number, sent_at=sent_at, commands=tuple(sent))
    assert decode_batch(encode_batch(batch)) == batch


@given(st.lists(replies, max_size=5))
def test_replies_survive_the_wire(batch: list[Reply]) -> None:
    assert decode_replies(encode_replies(batch)) == batch


def test_an_answer_arrives_as_plain_data() -> None:
    at = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
    (reply,) = decode_replies(encode_replies([Done(answer={"hold": {"expires_at": at}})]))

    assert isinstance(reply, Done)
    assert datetime.fromisoformat(reply.answer["hold"]["expires_at"]) == at


def test_a_batch_of_another_version_is_refused() -> None:
    held = ask(HoldSlot, hold_id="h", slot_id="s")
    batch = Batch(generation=1, sender="api", number=1, sent_at=datetime(2026, 11, 24, tzinfo=UTC), commands=(held,))
    version, *content = orjson.loads(encode_batch(batch))
    assert version == WIRE_VERSION

    with pytest.raises(ValueError, match=f"wire version {version + 1}"):
        decode_batch(orjson.dumps([version + 1, *content]))


# Small things


def test_live_statuses_are_those_that_occupy_a_slot() -> None:
    assert {status for status in AppointmentStatus if status.live} == {"booked", "rescheduled", "arrived"}


def test_everyone_but_a_patient_is_staff() -> None:
    assert {role for role in Role if Requester(user_id="u", role=role).staff} == {"doctor", "admin"}


def test_messages_are_values() -> None:
    command = ask(HoldSlot, command_id="c", hold_id="h", slot_id="s", deadline=datetime(2026, 1, 1, tzinfo=UTC))

    assert command == ask(
        HoldSlot,
        command_id="c",
        hold_id="h",
        slot_id="s",
        deadline=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(0),
    )
    with pytest.raises(AttributeError):
        command.hold_id = "other"  # type: ignore[misc]
    assert NotDecided(why=RefusedFor.EXPIRED) != NotDecided(why=RefusedFor.OVERLOADED)


# Rejections


@pytest.mark.parametrize("kind", REJECTIONS.values(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("detail", [None, "Because of the rain.", ""])
def test_every_rejection_survives_pickling_and_its_plain_form(kind: type[Rejection], detail: str | None) -> None:
    rejection = kind(detail)

    for received in (pickle.loads(pickle.dumps(rejection)), from_plain(rejection.as_plain())):
        assert type(received) is kind
        assert received.code == rejection.code
        assert received.detail == rejection.detail
        assert str(received) == rejection.detail
    assert rejection.as_plain() == {"code": kind.code, "detail": kind.default_detail if detail is None else detail}


def test_every_rejection_is_known_by_a_code_of_its_own() -> None:
    assert set(REJECTIONS.values()) == set(Rejection.__subclasses__())
    with pytest.raises(KeyError):
        from_plain({"code": "because", "detail": ""})
