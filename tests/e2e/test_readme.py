"""The README is true: its walk-through prints what it says, ``verify`` is clean, and a dump holds nothing personal."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml

from cluster.data_directory import DataDirectory, Runtime, read_runtime
from cluster.embedded import EmbeddedPostgres
from tests.serving import QUIET, Up

REPOSITORY = Path(__file__).parents[2]
README = REPOSITORY / "README.md"
DEMO = REPOSITORY / "cluster" / "demo.yaml"
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SERVER = "ZAPIS=http://127.0.0.1:8000\n"
BLOCK_ENDS = "--- a block ends ---"
ADMIN_PASSWORD, ACCOUNT_PASSWORD = "Admin-Horse-9", "Every-Account-7"

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def demo() -> Iterator[Up]:
    """The demo clinic, as ``zapis up --demo`` serves it; a signal ends it, and nothing of it is left."""
    with tempfile.TemporaryDirectory(prefix="zapis-readme-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        passwords = {"ZAPIS_ADMIN_PASSWORD": ADMIN_PASSWORD, "ZAPIS_ACCOUNT_PASSWORD": ACCOUNT_PASSWORD}
        up = Up(Path(directory) / "data", "--demo", **passwords)
        try:
            up.wait_ready()
            yield up
            assert up.terminate() == 0, up.said()
            assert up.processes() == []
            assert "Traceback" not in up.said()
        finally:
            up.kill()


# The walk-through


def test_the_walk_through_prints_what_the_readme_says(demo: Up, tmp_path: Path) -> None:
    blocks = _walk_through()
    script = "".join(f"{commands}\necho '{BLOCK_ENDS}'\n" for commands, _ in blocks)
    assert script.count(SERVER) == 1

    answer = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace(SERVER, f"ZAPIS={demo.url}\n")],
        cwd=tmp_path,
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert answer.stderr == ""
    assert answer.stdout.split(f"{BLOCK_ENDS}\n") == [*(printed for _, printed in blocks), ""]
    assert answer.returncode == 0
    verified = demo.zapis("verify")
    assert (verified.returncode, verified.stderr) == (0, "")
    assert re.fullmatch(r"clean: 12 calendars, \d+ events\n", verified.stdout)


def _walk_through() -> list[tuple[str, str]]:
    """Every block of commands, and what is printed by it: the text that follows it, else nothing."""
    blocks: list[tuple[str, str]] = []
    text = README.read_text(encoding="utf-8")
    for language, content in FENCED.findall(text):
        if language == "sh":
            blocks.append((content, ""))
        elif language == "text":
            assert blocks, "it follows commands"
            commands, printed = blocks[-1]
            assert printed == ""
            blocks[-1] = (commands, content)
    assert len(blocks) >= 5
    assert sum(printed != "" for _, printed in blocks) >= 4
    return blocks


def test_what_the_demo_sends_is_in_its_mailbox(demo: Up) -> None:
    with httpx.Client(base_url=demo.url, trust_env=False, timeout=30) as http:
        form = {"grant_type": "password", "username": "anna.kiseleva", "password": ACCOUNT_PASSWORD}
        token = http.post("/v1/auth/token", data=form).json()["access_token"]
        slots = http.get("/v1/slots", params={"from": _days_on(5), "to": _days_on(12)}).json()["items"]
        headers = {"Authorization": f"Bearer {token}"}
        booked = http.post("/v1/appointments", json={"slot_id": slots[0]["id"]}, headers=headers)
        assert booked.status_code == 201, booked.text
        give_up_at = time.monotonic() + 30
        row = re.compile(r'>anna\.kiseleva@example\.com</td><td><a href="(/dev/mailbox/[^"]+)">Your visit on')
        while not (found := row.search(http.get("/dev/mailbox").text)):
            assert time.monotonic() < give_up_at, "nothing came"
            time.sleep(0.1)
        page = http.get(found[1]).text
        assert "anna.kiseleva@example.com" in page
        assert "METHOD:REQUEST" not in page, "the address has not been verified"
        assert http.get("/dev/mailbox/nothing").status_code == 404
        assert http.get("/dev/mailbox", headers={"Host": "evil.example"}).status_code == 404
        assert 'kind="booked",outcome="sent"' in http.get("/metrics").text
        http.post(f"/v1/appointments/{booked.json()['id']}/cancel", headers=headers)
    assert re.search(r"^notifier:email:0: \d+ due, .* sent, 0 dead", demo.zapis("status").stdout, re.MULTILINE)


# The dump


@dataclass(slots=True)
class Personal:
    """Texts that nobody may read in a dump, in every form in which they might stand there."""

    words: set[str] = field(default_factory=set)
    """Found as whole words only: a name may be part of a word that is no name."""
    texts: set[str] = field(default_factory=set)

    def person(
        self, name: str, *, login: str = "", email: str = "", phone: str = "", birth_date: object = None
    ) -> None:
        """A person, with all that was said of them."""
        self.words.update(word.casefold() for word in name.split() if len(word) > 2)
        self.text(name, login, email, str(birth_date or ""))
        if phone:
            digits = "".join(filter(str.isdigit, phone))
            country, area, first, last = digits[:-10], digits[-10:-7], digits[-7:-4], digits[-4:]
            self.text(phone, digits, digits[-10:], f"+{country} {area} {first} {last}", f"{area}-{first}-{last}")
            self.text(f"({area}) {first}-{last}", f"{area} {first} {last}", f"{first} {last}")

    def text(self, *texts: str) -> None:
        """What somebody wrote; empty ones do not count."""
        for text in filter(None, texts):
            raw = text.encode()
            forms = (text, raw.hex(), base64.b64encode(raw).decode().rstrip("="), json.dumps(text)[1:-1])
            self.texts.update(form.casefold() for form in forms)

    def found_in(self, content: str) -> set[str]:
        """Those that can be read there."""
        content = content.casefold()
        known_words = set(re.findall(r"\w+", content))
        return {text for text in self.texts if text in content} | (self.words & known_words)


def test_a_dump_holds_nothing_personal(demo: Up) -> None:
    personal = _demo_people()
    _enter_everywhere(demo.url, personal)
    runtime = read_runtime(demo.data_dir)
    assert runtime is not None

    dump = _dump(demo, runtime)

    assert len(personal.texts) > 500
    assert personal.found_in(dump) == set()
    logs = [path.read_text(errors="replace") for path in (demo.data_dir / "log").iterdir()]
    assert personal.found_in("\n".join([*logs, demo.said()])) == set()

    # It would be found: what is public is, and so are a name and its bytes where they do not belong.
    public = Personal()
    public.text("Lesnaya Clinic", "14 Lesnaya Street, Moscow", "ECG mornings", "Europe/Moscow")
    assert {"lesnaya clinic", "14 lesnaya street, moscow", "ecg mornings", "europe/moscow"} <= public.found_in(dump)
    with psycopg.connect(runtime.settings["database_url"]) as connection:
        connection.execute("CREATE TABLE leak AS SELECT 'Mila' AS word, convert_to('Anna Kiseleva', 'UTF8') AS bytes")
        connection.commit()
        leaking = _dump(demo, runtime)
        connection.execute("DROP TABLE leak")
    assert personal.found_in(leaking) == {"mila", b"Anna Kiseleva".hex()}


def _demo_people() -> Personal:
    """All people of the demo clinic and of the README, and why they come."""
    clinic = yaml.safe_load(DEMO.read_text(encoding="utf-8"))
    personal = Personal()
    for each in (*clinic["doctors"], *clinic["patients"]):
        personal.person(
            each["name"],
            login=each["login"],
            email=each["email"],
            phone=each["phone"],
            birth_date=each.get("birth_date"),
        )
        for child in each.get("children", ()):
            personal.person(child["name"], birth_date=child["birth_date"])
    for visit in clinic["visits"]:
        personal.text(visit.get("reason", ""))
    personal.person(
        "Vera Lind",
        login="vera.lind",
        email="vera.lind@example.org",
        phone="+1 202 555 0190",
        birth_date="1988-03-14",
    )
    personal.text("Palpitations", "Blue-kettle-42", ADMIN_PASSWORD, ACCOUNT_PASSWORD)
    return personal


def _enter_everywhere(url: str, personal: Personal) -> None:
    """Say something personal wherever anything can be said."""
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as http:

        def call(method: str, path: str, body: Any = None, *, token: str = "", key: str = "") -> Any:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            headers |= {"Idempotency-Key": key} if key else {}
            answer = http.request(method, path, json=body, headers=headers)
            assert answer.is_success, (path, answer.text)
            return answer.json() if answer.content and answer.content != b"null" else None

        def sign_in(login: str, password: str) -> str:
            form = {"grant_type": "password", "username": login, "password": password}
            tokens = http.post("/v1/auth/token", data=form).json()
            personal.text(tokens["access_token"], tokens["refresh_token"])
            return str(tokens["access_token"])

        def said(text: str) -> str:
            personal.text(text)
            return text

        # Somebody registers, with letters beyond ASCII, and changes everything afterwards.
        password = said("Красный-чайник-7")
        tanya: dict[str, Any] = {
            "login": "tanya.yolkina",
            "name": "Татьяна Ёлкина",
            "birth_date": "1971-12-28",
            "email": "tanya.yolkina@example.net",
            "phone": "+1 202 555 0171",
        }
        personal.person(**tanya)
        user = call("POST", "/v1/auth/register", tanya | {"password": password})
        token = sign_in("tanya.yolkina", password)
        changed = {"name": "Татьяна Дубровская", "email": "dubrovskaya@example.net", "phone": "+1 202 555 0172"}
        personal.person(**changed)
        new_password = {"password": said("Синий-чайник-78"), "current_password": password}
        call("PATCH", "/v1/me", changed | new_password, token=token)
        call("POST", "/v1/auth/password/forgot", {"email": changed["email"]})
        child = {"name": "Глафира Дубровская", "birth_date": "2017-10-19", "phone": "+1 202 555 0173"}
        personal.person(**child)
        child_id = call("POST", "/v1/me/patients", child | {"relation": "child"}, token=token)["id"]

        # She books, moves and cancels; staff do the same for her, and say why they may.
        admin = sign_in("admin", ADMIN_PASSWORD)
        doctor = call("GET", "/v1/doctors?q=Volkova")["items"][0]
        house = sign_in("dr.volkova", ACCOUNT_PASSWORD)
        later = {"from": _days_on(8), "to": _days_on(20)}
        slots = http.get("/v1/slots", params={"doctor_id": doctor["id"], **later}).json()["items"]
        one, two, three, four, *_ = [slot["id"] for slot in slots]
        visit = call(
            *("POST", "/v1/appointments", {"slot_id": one, "reason": said("Одышка при подъёме на третий этаж")}),
            token=token,
            key=said("glafira-and-tatyana-go-first"),
        )
        path = f"/v1/appointments/{visit['id']}"
        override = {"override_reason": said("She called from the ambulance")}
        call("POST", f"{path}/reschedule", {"slot_id": two} | override, token=house)
        ill = {"reason": said("Caught the flu from her niece"), "override_reason": said("Her husband telephoned")}
        call("POST", f"{path}/cancel", ill, token=admin)
        for_child = {"slot_id": three, "patient_id": child_id, "reason": said("Swallowed a marble")}
        call("POST", "/v1/appointments", for_child | {"override_reason": said("No time to lose")}, token=admin)
        for_herself = {"slot_id": four, "patient_id": user["patient_id"], "reason": said("Second opinion on the liver")}
        call("POST", "/v1/appointments", for_herself, token=house)
        assert call("GET", "/v1/patients?q=Дубровская Глафира", token=admin)["items"]

        # A doctor comes, marries, and is away.
        new: dict[str, Any] = {
            "login": "dr.quimby",
            "name": "Philomena Quimby",
            "email": "quimby@example.net",
            "phone": "+1 202 555 0174",
        }
        personal.person(**new)
        entry = new | {"password": said("Green-kettle-43"), "specialties": ["surgery"]}
        entry["location_ids"] = doctor["location_ids"]
        made = call("POST", "/v1/admin/doctors", entry, token=admin)
        personal.person("Philomena Ravenscroft")
        call("PATCH", f"/v1/admin/doctors/{made['id']}", {"name": "Philomena Ravenscroft"}, token=admin)
        away = {"from": _days_on(8), "to": _days_on(9)}
        closure = away | {"reason": said("Surgery on the left knee")}
        call("POST", f"/v1/admin/doctors/{made['id']}/closures", closure, token=admin)
        call("POST", "/v1/doctor/closures", away | {"reason": said("Expecting a baby in spring")}, token=house)
        call("PATCH", f"/v1/admin/users/{user['id']}", {"disabled": True}, token=admin)


def _days_on(number: int) -> str:
    return (datetime.now(UTC).date() + timedelta(days=number)).isoformat()


def _dump(demo: Up, runtime: Runtime) -> str:
    """The whole database, as SQL."""
    url = httpx.URL(runtime.settings["database_url"])
    binary = EmbeddedPostgres(DataDirectory(demo.data_dir)).binaries / "pg_dump"
    dump = subprocess.run(
        [str(binary), str(url.copy_with(password=None, username="zapis"))],
        env={"PGPASSWORD": url.password},
        capture_output=True,
        check=True,
    )
    return dump.stdout.decode()
