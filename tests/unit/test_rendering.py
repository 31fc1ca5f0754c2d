"""Messages in words: every kind, in both languages, as mail programs and people get them."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, date, datetime
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.utils import parseaddr
from html.parser import HTMLParser
from typing import Any

import pytest

from actors.messages import Role
from api.notifications.templates import KINDS
from notifier.contents import Content, VisitContent
from notifier.email import INVITING, compose
from notifier.languages import LANGUAGES
from notifier.plan import TOPICS
from notifier.preferences import Channel
from notifier.rendering import TemplateRefused, Words, built_in, put_in_words, render, sample
from notifier.senders import Message, Refused
from persistence.repositories.appointments import AppointmentRow
from persistence.repositories.directory import Location
from persistence.repositories.notifications import Notification
from persistence.repositories.patients import Patient
from persistence.repositories.templates import Template
from persistence.repositories.users import User

NOW = datetime(2026, 12, 1, 12, 0, tzinfo=UTC)
START = datetime(2026, 12, 3, 6, 30, tzinfo=UTC)
SENDER = "Clinic at the park <no-reply@clinic.example>"
UNSUBSCRIBE = f"https://clinic.example/v1/notifications/unsubscribe?token={'kA9-_' * 24}"
"""As long as a real one."""
USER = User(
    id="01a2211f-0000-7000-8000-000000000001",
    role=Role.PATIENT,
    login="anna",
    name="Anna <Petrova> & Söhne",
    email="anna@mail.example",
    phone="+4930901820",
    email_verified=True,
    phone_verified=True,
    locale="en",
    timezone="Europe/Moscow",
    patient_id="p1",
    doctor_id=None,
    registered_at=NOW,
    disabled_at=None,
    session_generation=0,
    password_hash="",
    wrapped_key=b"",
)
CANCELLED = frozenset({"cancelled_by_patient", "cancelled_by_clinic"})


def content(kind: str, language: str, *, confirmed: bool = True, **changed: Any) -> Content:
    """A message of that kind to somebody who speaks that language."""
    visit = None
    details = {"code": "k7-Xy", "expires_at": "2026-12-01T13:00:00+00:00"}
    if kind in TOPICS:
        details = {}
        appointment = AppointmentRow(
            id="01a2211f-0000-7000-8000-000000000002",
            doctor_id="d1",
            patient_id="p2",
            booked_by=USER.id,
            slot_id="s1",
            location_id="l1",
            service_id=None,
            start=START,
            end=START.replace(hour=7),
            status="cancelled" if kind in CANCELLED else "booked",
            live=kind not in CANCELLED,
            displaced=False,
            version=1,
            created_at=NOW,
            updated_at=NOW,
            sealed_reason=None,
            open_move_id=None,
        )
        visit = VisitContent(
            appointment=appointment,
            location=Location(id="l1", name="Парк & Co", address="1 Park Street", timezone="Europe/Moscow"),
            doctor="Gregory House",
            patient=Patient(id="p2", name="Masha Petrova", birth_date=date(2019, 1, 1), phone=None),
        )
    elif kind == "refused":
        details = {}
    elif kind == "new_device":
        details = {"at": "2026-12-01T12:00:00+00:00"}
    notification = Notification(
        id="01a2211f-0000-7000-8000-00000000abcd",
        outbox_id="o",
        kind=kind,
        ahead="",
        channel=Channel.EMAIL,
        user_id=USER.id,
        appointment_id=None if visit is None else visit.appointment.id,
        version=1,
        due_at=NOW,
        expires_at=START,
        next_at=NOW,
        leased_until=None,
        attempts=1,
        ended_at=None,
        outcome=None,
        failure=None,
    )
    user = replace(USER, locale=language, **changed)
    return Content(notification=notification, user=user, visit=visit, details=details, confirmed=confirmed)


class Page(HTMLParser):
    """What has to be looked at in the HTML of an e-mail."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str | None] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        assert tag not in ("script", "iframe", "object", "form", "input", "link"), tag
        assert tag != "img" or known.get("alt") is not None, "an image needs a text in its place"
        assert not [name for name in known if name.startswith("on")]
        if tag == "a":
            self.links.append(known.get("href"))
        if tag == "html":
            assert known.get("lang") in LANGUAGES
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_message_is_sound(kind: str, language: str) -> None:
    said = content(kind, language)
    unsubscribe = UNSUBSCRIBE if said.visit is not None else None
    words = render(said, unsubscribe_url=unsubscribe)
    page = Page(words.html)
    assert page.open == []
    assert page.links == ([unsubscribe] if unsubscribe else [])
    assert "Anna <Petrova> & Söhne" in page.text, "escaped once"
    assert 10 <= len(words.subject) <= 100
    assert len(words.short) <= 160
    for shown in (words.subject, words.short):
        assert not [name for name in ("House", "Petrova", "Masha", "Park Street") if name in shown], shown
    if said.visit is not None:
        for everything in (words.text, page.text):
            assert {"Gregory House", "Masha Petrova", "Парк & Co, 1 Park Street"} <= {
                name for name in ("Gregory House", "Masha Petrova", "Парк & Co, 1 Park Street") if name in everything
            }
            assert "09:30" in everything, "by the clock there"
    elif kind not in ("new_device", "refused"):
        assert "k7-Xy" in words.text

    mail = compose(Message(content=said, words=words, unsubscribe_url=unsubscribe), sender=SENDER)
    assert max(map(len, mail.split(b"\r\n"))) <= 998, "RFC 5322, 2.1.1"
    head = mail.partition(b"\r\n\r\n")[0]
    assert (f"\r\nList-Unsubscribe: <{UNSUBSCRIBE}>\r\n".encode() in head) == (unsubscribe is not None), "as it is"
    assert all(len(word) <= 75 for word in re.findall(rb"=\?[^\s]+\?=", head)), "RFC 2047, 2"
    read = message_from_bytes(mail, policy=policy.default)
    assert read["Message-ID"] == "<01a2211f-0000-7000-8000-00000000abcd@clinic.example>"
    assert read["Subject"] == words.subject
    assert read["To"].addresses[0].display_name == "Anna <Petrova> & Söhne"
    assert read["From"] == SENDER
    assert read["Content-Language"] == language
    assert (read["List-Unsubscribe-Post"] is not None) == (unsubscribe is not None)
    kinds = [part.get_content_type() for part in read.walk() if not part.is_multipart()]
    assert kinds == ["text/plain", "text/html"] + ["text/calendar"] * (kind in INVITING)
    plain = read.get_body(("plain",))
    assert plain is not None
    assert plain.get_content().splitlines() == words.text.splitlines()
    if kind in INVITING:
        (file,) = (part for part in read.walk() if part.get_content_type() == "text/calendar")
        method = "CANCEL" if kind in CANCELLED else "REQUEST"
        assert file.get_param("method") == method
        text = file.get_content()
        assert f"METHOD:{method}" in text
        assert "House" not in text
        assert "ATTENDEE" in text


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", list(TOPICS))
def test_an_address_that_may_be_somebody_elses_learns_no_name(kind: str, language: str) -> None:
    said = content(kind, language, confirmed=False)
    words = render(said, unsubscribe_url=UNSUBSCRIBE)
    mail = compose(Message(content=said, words=words, unsubscribe_url=UNSUBSCRIBE), sender=SENDER).decode()
    for everything in (words.subject, words.text, words.html, mail):
        assert not [name for name in ("House", "Petrova", "Masha", "Park Street", "BEGIN:V") if name in everything]
    assert "09:30" in words.text


def test_a_name_breaks_no_header() -> None:
    said = content("booked", "en", name='Eve\r\nBcc: all@mail.example\r\n\r\n"')
    said = replace(said, template=Template(subject="At {{ time }}\r\nBcc: all@mail.example", text="x", short="x"))
    words = render(said)
    assert words.subject == "At 09:30 Bcc: all@mail.example"
    mail = compose(Message(content=said, words=words, unsubscribe_url=None), sender=SENDER)
    assert message_from_bytes(mail, policy=policy.default)["Bcc"] is None


def test_names_and_domains_in_any_letters_reach_every_server() -> None:
    name = "Екатерина Александровна Преображенская-Воскресенская"
    said = content("booked", "ru", name=name, email="anna@почта.рф")
    mail = compose(Message(content=said, words=render(said), unsubscribe_url=None), sender=SENDER)
    assert mail.isascii()
    head = mail.partition(b"\r\n\r\n")[0]
    assert all(len(word) <= 75 for word in re.findall(rb"=\?[^\s]+\?=", head))
    # policy.default keeps the space between two encoded words of a phrase, which RFC 2047 (6.2) has readers drop.
    recipient = str(make_header(decode_header(message_from_bytes(mail)["To"])))
    assert parseaddr(recipient) == (name, "anna@xn--80a1acny.xn--p1ai")
    said = content("booked", "ru", email="анна@почта.рф")
    message = Message(content=said, words=render(said), unsubscribe_url=None)
    with pytest.raises(Refused):
        compose(message, sender=SENDER)


def test_whoever_speaks_another_language_is_written_to_in_english() -> None:
    for locale, language in (("pt-BR", "en"), ("ru-RU", "ru"), ("RU", "ru"), ("", "en")):
        assert render(content("booked", locale)).language == language


def tried(template: Template) -> Words:
    return put_in_words(template, sample("en"), language="en", unsubscribe_url=None)


@pytest.mark.parametrize(
    "source",
    [
        "{{ name.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ self.__init__ }}",
        "{{ lipsum() }}",
        "{{ name.format(name) }}{{ '{0.__class__}'.format(name) }}",
        "{{ range(10) }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ name.ljust(999999999) }}",
        "{{ name | center(999999999) }}",
        "{% for a in name %}{% for b in name %}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% set x = name %}",
        "{{ [name] }}",
        "{{ name[0] }}",
        "{% import 'x' as y %}",
        "{{ 1 / 0 }}",
        "{{ name | attr('__class__') }}",
        "{% if name %}" * 101 + "{% endif %}" * 101,
        "{{ " + "(" * 900 + "name" + ")" * 900 + " }}",
    ],
)
def test_a_template_gets_nowhere(source: str) -> None:
    with pytest.raises(TemplateRefused):
        tried(Template(subject="x", text=source, short="x"))


def test_a_template_says_what_it_is_told_by_conditions_and_a_few_filters() -> None:
    source = (
        "{% if patient and day != 'x' %}{{ name | upper }} ~ {{ 'a' ~ day }}{% elif not code %}-{% else %}.{% endif %}"
    )
    assert tried(Template(subject="x", text=source, short="x")).text.startswith("ANNA PETROVA ~ aThursday")


def test_what_is_built_in_is_there_for_every_kind_and_language() -> None:
    for kind in KINDS:
        for language in LANGUAGES:
            assert built_in(kind, language).subject
    assert set(sample("en")) == set(sample("ru"))
