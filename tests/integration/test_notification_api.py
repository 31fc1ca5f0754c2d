"""What users and administrators may say of notifications, through the interface."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text

from notifier.languages import LANGUAGES
from notifier.preferences import Channel
from notifier.unsubscribe import link_maker
from persistence.identifiers import new_id
from tests.integration.practice import Practice, content, refusal
from tests.people import Person
from tests.providers import BROWSER

pytestmark = pytest.mark.asyncio(loop_scope="module")

PREFERENCES = "/v1/me/notification-preferences"
UNSUBSCRIBE = "/v1/notifications/unsubscribe"
TEMPLATES = "/v1/admin/templates"


async def pointers(practice: Practice, who: Person, body: Any) -> list[str]:
    answer = await practice.send(who, "PUT", PREFERENCES, body)
    assert answer.status_code == 422, answer.text
    return [error["pointer"] for error in answer.json()["errors"]]


async def test_preferences_are_chosen_bit_by_bit(practice: Practice) -> None:
    anna = await practice.people.patient()
    default = await practice.get(anna, PREFERENCES)
    assert default["reminders"] == ["P1D", "PT2H"]
    assert default["channels"]["booked"] == {"email": True, "sms": False, "push": True}

    async def put(body: Any) -> Any:
        return content(await practice.send(anna, "PUT", PREFERENCES, body), 200)

    assert await put({}) == default
    changed = await put({"reminders": ["PT30M"], "quiet_hours": None, "locale": "ru"})
    assert changed == default | {"reminders": ["PT30M"], "quiet_hours": None, "locale": "ru"}
    channels = default["channels"] | {"reminder": {"email": False, "sms": False, "push": False}}
    assert await put({"channels": channels}) == changed | {"channels": channels}
    assert await put({"quiet_hours": {"from": "23:15", "to": "06:45"}, "reminders": []}) == changed | {
        "channels": channels,
        "quiet_hours": {"from": "23:15", "to": "06:45"},
        "reminders": [],
    }
    assert (await practice.get(anna, "/v1/me"))["locale"] == "ru"
    boris = await practice.people.patient()
    assert await practice.get(boris, PREFERENCES) == default


async def test_preferences_that_make_no_sense_are_refused(practice: Practice) -> None:
    anna = await practice.people.patient()
    for body, pointer in (
        ({"reminders": ["P1D", "1h"]}, "/reminders/1"),
        ({"reminders": ["P1D", "P1D"]}, "/reminders"),
        ({"reminders": [f"PT{number}H" for number in range(1, 9)]}, "/reminders"),
        ({"reminders": None}, "/reminders"),
        ({"quiet_hours": {"from": "25:00", "to": "07:00"}}, "/quiet_hours/from"),
        ({"quiet_hours": {"from": "22:00"}}, "/quiet_hours/to"),
        ({"channels": {"booked": {"email": True, "sms": True, "push": True}}}, "/channels/moved"),
        ({"channel": {}}, "/channel"),
        ({"locale": "russian!"}, "/locale"),
        ([], ""),
    ):
        assert pointer in await pointers(practice, anna, body), body
    assert refusal(await practice.send(None, "GET", PREFERENCES)) == "401 unauthenticated"


async def test_a_link_switches_off_what_it_says_and_nothing_else(practice: Practice) -> None:
    anna = await practice.people.patient()
    before = await practice.get(anna, PREFERENCES)
    make = link_maker(practice.api.services.vault, "https://clinic.example/")
    link = make(anna.user_id, "reminder", Channel.EMAIL)
    address, _, token = link.partition("?token=")
    assert address == f"https://clinic.example{UNSUBSCRIBE}"
    asked = await practice.api.http.get(UNSUBSCRIBE, params={"token": token})
    assert (asked.status_code, "<form" in asked.text) == (200, True)
    assert await practice.get(anna, PREFERENCES) == before, "programs follow links, too"

    forms: tuple[dict[str, Any], ...] = (
        {"data": {"List-Unsubscribe": "One-Click"}},
        {"files": {"List-Unsubscribe": (None, "One-Click")}},  # RFC 8058, 8.2 and 8.3
    )
    for form in forms:
        answer = await practice.api.http.post(UNSUBSCRIBE, params={"token": token}, **form)
        assert (answer.status_code, "<form" in answer.text) == (200, False)
    after = await practice.get(anna, PREFERENCES)
    before["channels"]["reminder"]["email"] = False
    assert after == before

    for wrong in (token[:-2], token.swapcase(), "", "x" * 299, "ä", token + "=" * 9):
        assert refusal(await practice.api.http.get(UNSUBSCRIBE, params={"token": wrong})) == "404 not_found", wrong
    assert (await practice.api.http.get(UNSUBSCRIBE, params={"token": "x" * 301})).status_code == 422


async def planned(practice: Practice, who: Person, outcome: str | None, **more: Any) -> str:
    """The id of a message that ended so."""
    row = {
        "id": new_id(),
        "user_id": who.user_id,
        "outcome": outcome,
        "kind": "reminder",
        "channel": "email",
        "failure": None,
    } | more
    async with practice.api.services.unit_of_work() as work:
        await work.connection.execute(
            text(
                "INSERT INTO notification (id, outbox_id, kind, ahead, channel, user_id, appointment_id, version,"
                " due_at, expires_at, next_at, attempts, ended_at, outcome, failure) VALUES (:id, :id, :kind, 'P1D',"
                " :channel, :user_id, :id, 1, now(), now() + interval '1 day', now() + interval '1 hour', 3,"
                " CASE WHEN CAST(:outcome AS text) IS NULL THEN NULL ELSE now() END, :outcome, :failure)"
            ),
            row,
        )
    return str(row["id"])


async def test_everyone_sees_their_own_messages(practice: Practice) -> None:
    anna, boris = await practice.people.patients(2)
    mine = [await planned(practice, anna, outcome) for outcome in ("sent", None, "void")]
    await planned(practice, boris, "sent")
    page = await practice.get(anna, "/v1/me/notifications", limit=2)
    rest = await practice.get(anna, "/v1/me/notifications", limit=2, cursor=page["next_cursor"])
    seen = [*page["items"], *rest["items"]]
    assert [each["id"] for each in seen] == sorted(mine, reverse=True)
    assert {each["id"]: each["state"] for each in seen} == dict(zip(mine, ("sent", "waiting", "void"), strict=True))
    assert "user_id" not in seen[0]
    assert "failure" not in seen[0]


async def test_administrators_see_what_nobody_got_and_have_it_sent_again(practice: Practice) -> None:
    anna = await practice.people.patient()
    dead = await planned(practice, anna, "dead", failure="SMTP 550")
    sent = await planned(practice, anna, "sent")
    found = await practice.get(practice.admin, "/v1/admin/notifications", state="dead", user_id=anna.user_id)
    assert [(each["id"], each["failure"], each["attempts"]) for each in found["items"]] == [(dead, "SMTP 550", 3)]
    again = await practice.post(practice.admin, f"/v1/admin/notifications/{dead}/resend")
    assert (again["state"], again["attempts"]) == ("waiting", 0)
    waiting = await practice.get(practice.admin, "/v1/admin/notifications", state="waiting", user_id=anna.user_id)
    assert [each["id"] for each in waiting["items"]] == [dead]
    for wrong in (dead, sent, new_id()):
        answer = await practice.send(practice.admin, "POST", f"/v1/admin/notifications/{wrong}/resend")
        assert refusal(answer) == "404 not_found"
    for path in ("/v1/admin/notifications", TEMPLATES):
        assert refusal(await practice.send(anna, "GET", path)) == "403 forbidden"
    audit = await practice.get(practice.admin, "/v1/admin/audit", limit=5)
    assert ("resend", dead) in [(each["action"], each["subject_id"]) for each in audit["items"]]


async def test_templates_are_written_tried_and_put_back(practice: Practice) -> None:
    listed = await practice.get(practice.admin, TEMPLATES)
    assert {each["version"] for each in listed["items"]} == {0}
    assert len(listed["items"]) == 12 * len(LANGUAGES)
    path = f"{TEMPLATES}/booked/en"
    body = {"subject": "At {{ time }}", "text": "Dear {{ name }},\n\nwith {{ doctor }}.", "short": "At {{ time }}."}
    preview = await practice.post(practice.admin, f"{path}/preview", body)
    assert preview["subject"] == "At 09:00"
    assert preview["short"] == "At 09:00."
    assert "Dr Irina Volkova" in preview["html"]
    writing = [practice.send(practice.admin, "PUT", path, body) for _ in range(2)]
    written = [content(answer, 200)["version"] for answer in await asyncio.gather(*writing)]
    assert sorted(written) == [1, 2]
    again = content(await practice.send(practice.admin, "DELETE", path), 200)
    assert again["version"] == 3
    assert again["subject"].startswith("Your visit")


@pytest.mark.parametrize(
    "wrong",
    [
        {"subject": "{{ name }}"},  # Anybody may read a subject line.
        {"short": "{{ doctor }}"},
        {"short": "{{ patient }}"},
        {"text": "{{ nothing }}"},
        {"text": "{{ code }}"},  # A booking has none.
        {"text": "{% for x in"},
        {"text": "{{ name.__class__.__mro__ }}"},
        {"text": "{{ 'x' * 100000000 }}"},
        {"text": "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}"},
        {"text": "{% include 'layout.html' %}"},
        {"text": "{{ name | nothing }}"},
        {"text": "{% if patient %}{{ nothing }}{% endif %}"},
        {"text": "{% if not patient %}{{ nothing }}{% endif %}"},
        {"text": ""},
        {"text": "x" * 20_001},
        {"subject": None},
    ],
)
async def test_a_template_that_does_not_render_is_refused(practice: Practice, wrong: Any) -> None:
    body = {"subject": "At {{ time }}", "text": "Dear {{ name }}", "short": "At {{ time }}."} | wrong
    answer = await practice.send(practice.admin, "PUT", f"{TEMPLATES}/booked/ru", body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] == "validation_error"
    listed = await practice.get(practice.admin, TEMPLATES)
    (kept,) = (each for each in listed["items"] if (each["kind"], each["language"]) == ("booked", "ru"))
    assert kept["version"] == 0


async def test_there_are_templates_for_what_there_is(practice: Practice) -> None:
    body = {"subject": "x", "text": "x", "short": "x"}
    answer = await practice.send(practice.admin, "PUT", f"{TEMPLATES}/nothing/en", body)
    assert refusal(answer) == "404 not_found"
    assert (await practice.send(practice.admin, "PUT", f"{TEMPLATES}/booked/fr", body)).status_code == 422


async def test_a_browser_is_pushed_to_only_by_known_services(practice: Practice) -> None:
    anna = await practice.people.patient()
    for endpoint in (
        "https://push.evil.example/x",
        "http://169.254.169.254/latest/meta-data",
        "https://fcm.googleapis.com.evil.example/x",
        "https://fcm.googleapis.com@evil.example/x",
        "javascript:alert(1)",
        "",
    ):
        answer = await practice.send(anna, "POST", "/v1/me/push-subscriptions", BROWSER.subscription(endpoint))
        assert answer.status_code == 422, endpoint
        assert answer.json()["errors"][0]["pointer"] == "/endpoint"
    assert refusal(await practice.send(None, "GET", "/v1/push-key")) == "404 not_found"
    assert (await practice.get(anna, "/v1/me/push-subscriptions"))["items"] == []
    answer = await practice.send(anna, "DELETE", f"/v1/me/push-subscriptions/{new_id()}")
    assert refusal(answer) == "404 not_found"


async def test_nobody_sees_a_mailbox_where_there_is_none(practice: Practice) -> None:
    assert (await practice.send(practice.admin, "GET", "/dev/mailbox")).status_code == 404
