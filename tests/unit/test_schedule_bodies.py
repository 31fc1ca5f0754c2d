"""What is checked of templates, publications and closures before anything is asked of a calendar."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from actors.availability import Skipped
from actors.messages import Window
from api.administration import schemas
from api.administration.closures import checked_bounds, day_windows
from api.administration.schedules import check_days, checked_rules, merged_skips
from api.errors import Problem
from persistence.identifiers import new_id

RULE = {"weekday": "tue", "start": "09:00", "slot_minutes": 30, "slots": 10}
DAY = date(2026, 11, 24)


def template(*rules: dict[str, Any], **changed: Any) -> schemas.NewTemplate:
    body = {"name": "Days", "location_id": new_id(), "valid_from": "2026-01-01", "rules": list(rules)} | changed
    return schemas.NewTemplate.model_validate(body)


def refused_at(error: pytest.ExceptionInfo[Problem]) -> list[str]:
    assert error.value.code == "validation_error"
    return [pointer for pointer, _ in error.value.errors]


def test_tuesdays_ten_slots() -> None:
    (rule,) = checked_rules(template(RULE))
    assert (rule.weekday, rule.start.hour, rule.slots, rule.break_minutes, rule.service_id) == ("tue", 9, 10, 0, None)


def test_rules_that_overlap_are_named() -> None:
    with pytest.raises(Problem) as error:
        checked_rules(template(RULE, RULE | {"weekday": "wed"}, RULE | {"start": "13:45"}))
    assert refused_at(error) == ["/rules/2"]
    assert len(checked_rules(template(RULE, RULE | {"start": "14:00"}))) == 2


def test_a_rule_past_midnight_overlaps_the_next_day() -> None:
    night = RULE | {"start": "23:00", "slots": 4}
    with pytest.raises(Problem) as error:
        checked_rules(template(night, RULE | {"weekday": "wed", "start": "00:30"}))
    assert refused_at(error) == ["/rules/1"]


def test_a_rule_longer_than_a_day_and_a_validity_backwards() -> None:
    with pytest.raises(Problem) as error:
        checked_rules(template(RULE, RULE | {"slots": 49}))
    assert refused_at(error) == ["/rules/1/slots"]
    with pytest.raises(Problem) as error:
        checked_rules(template(RULE, valid_to="2025-12-31"))
    assert refused_at(error) == ["/valid_to"]


@pytest.mark.parametrize(
    "changed",
    [
        {"weekday": "tuesday"},
        {"weekday": 2},
        {"start": "9:00"},
        {"start": "24:00"},
        {"start": "09:00:00"},
        {"start": 540},
        {"start": "٠٩:٠٠"},
        {"slot_minutes": 0},
        {"slot_minutes": 1441},
        {"slot_minutes": 30.5},
        {"slot_minutes": "30"},
        {"slot_minutes": True},
        {"slots": 0},
        {"slots": 289},
        {"slots": 10**30},
        {"break_minutes": -1},
        {"break_minutes": None},
        {"service_id": "none"},
        {"surprise": 1},
    ],
)
def test_a_rule_that_is_none(changed: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        template(RULE | changed)


def test_a_publication_has_at_most_a_year() -> None:
    check_days(DAY, DAY)
    check_days(DAY, DAY + timedelta(days=365))
    for last_day in (DAY - timedelta(days=1), DAY + timedelta(days=366)):
        with pytest.raises(Problem) as error:
            check_days(DAY, last_day)
        assert refused_at(error) == ["/to"]


def test_what_was_skipped_is_told_by_start() -> None:
    at = datetime(2026, 11, 24, 9, tzinfo=UTC)
    told = merged_skips(
        [Skipped(start=at, why="dst_gap")], [{"start": (at - timedelta(hours=1)).isoformat(), "why": "past"}]
    )
    assert [each["why"] for each in told] == ["past", "dst_gap"]
    assert told[0]["start"] == at - timedelta(hours=1)


def closure(start: Any, end: Any, **more: Any) -> schemas.NewClosure:
    return schemas.NewClosure.model_validate({"from": start, "to": end, "reason": "Conference"} | more)


def test_an_absence_of_days_or_of_instants() -> None:
    days = closure("2026-11-24", "2026-11-25")
    assert checked_bounds(days.start, days.end) == (DAY, DAY + timedelta(days=1))
    instants = closure("2026-11-24T09:00:00+01:00", "2026-11-24T10:00:00Z")
    assert checked_bounds(instants.start, instants.end) == Window(
        start=datetime(2026, 11, 24, 8, tzinfo=UTC), end=datetime(2026, 11, 24, 10, tzinfo=UTC)
    )


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2026-11-24", "2026-11-25T00:00:00Z"),
        ("2026-11-24T00:00:00Z", "2026-11-25"),
        ("2026-11-25", "2026-11-24"),
        ("2026-11-24T09:00:00Z", "2026-11-24T09:00:00Z"),
        ("2026-11-24", "2027-11-25"),
        ("2026-11-24T00:00:00Z", "2027-11-25T00:00:01Z"),
    ],
)
def test_an_absence_that_is_none(start: str, end: str) -> None:
    body = closure(start, end)
    with pytest.raises(Problem) as error:
        checked_bounds(body.start, body.end)
    assert refused_at(error) == ["/to"]


@pytest.mark.parametrize(
    "bad", ["2026-11-24T09:00:00", "2026-02-30", "24.11.2026", "", 1764000000, None, "2026-11-24 "]
)
def test_a_bound_that_is_neither(bad: Any) -> None:
    with pytest.raises(ValidationError):
        closure(bad, "2026-11-30")


@pytest.mark.parametrize("reason", ["", "  \n", "x" * 501, None, 5, "a\x00b"])
def test_a_reason_is_needed(reason: Any) -> None:
    with pytest.raises(ValidationError):
        closure("2026-11-24", "2026-11-24", reason=reason)


def test_days_are_those_of_each_location() -> None:
    berlin, moscow = day_windows(DAY, DAY, {"b": "Europe/Berlin", "m": "Europe/Moscow"})
    assert (berlin.location_id, berlin.start) == ("b", datetime(2026, 11, 23, 23, tzinfo=UTC))
    assert (moscow.location_id, moscow.end) == ("m", datetime(2026, 11, 24, 21, tzinfo=UTC))


@pytest.mark.parametrize("body", [{"name": None}, {"minutes": None}])
def test_null_is_not_what_leaves_a_thing_as_it_is(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        schemas.ServiceChange.model_validate(body)
    assert schemas.ServiceChange.model_validate({"price": None}).model_fields_set == {"price"}
