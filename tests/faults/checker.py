"""Whether what clients were told, the journal and the tables agree: every rule that may not break, whatever fails.

The rules look at plain data: a history, and what stood in PostgreSQL afterwards (``records``). Each yields a line for
every violation it finds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise

from tests.faults.history import Attempt, Kind, Operation, Outcome
from tests.faults.records import Cause, Event, Records, Visit

VIOLATIONS_MAX = 50
"""Of each rule; the first tell enough."""
ON_ITS_WAY_MAX_S = 12.0
"""A message is read, sent, and that takes so long at most, though its node stands still meanwhile."""
EFFECTS = {
    Kind.BOOK: ("AppointmentBooked",),
    Kind.HOLD: ("SlotHeld",),
    Kind.MOVE: ("AppointmentRescheduled", "AppointmentMovedOut"),
    Kind.MOVE_AWAY: ("AppointmentMovedOut", "AppointmentRescheduled"),
    Kind.CANCEL: ("AppointmentCancelled",),
}
"""The events by which a wish comes true: whether a move crosses calendars is found out when it is made."""


Rule = Callable[[list[Operation], Records], Iterator[str]]


def check(operations: list[Operation], records: Records) -> list[str]:
    """Every violation found, under the name of its rule."""
    violations = []
    for rule in RULES:
        for number, violation in enumerate(rule(operations, records)):
            if number == VIOLATIONS_MAX:
                violations.append(f"{rule.__name__}: and more")
                break
            violations.append(f"{rule.__name__}: {violation}")
    return violations


def each_ok_once(operations: list[Operation], records: Records) -> Iterator[str]:
    """What was acknowledged stands in the journal once, as it was told."""
    commands = records.by_command()
    for operation in operations:
        if (good := operation.good) is None:
            continue
        effects = _effects(operation, commands) or _standing_hold(operation, good, records)
        if len(effects) != 1:
            yield f"{_name(operation)} is in the journal {len(effects)} times"
        elif (told := _differing(operation, good, effects[0])) is not None:
            yield f"{_name(operation)}: {told}"


def each_fail_absent(operations: list[Operation], records: Records) -> Iterator[str]:
    """What was refused, and no attempt of it is unknown, had no effect."""
    commands = records.by_command()
    for operation in operations:
        if operation.outcome is Outcome.FAIL and _effects(operation, commands):
            yield f"{_name(operation)} was refused and is in the journal"


def one_effect_a_key(operations: list[Operation], records: Records) -> Iterator[str]:
    """Whatever became of it, a key had one effect at most."""
    commands = records.by_command()
    for operation in operations:
        if len(effects := _effects(operation, commands)) > 1:
            yield f"{_name(operation)} had {len(effects)} effects"


def one_answer_a_key(operations: list[Operation], _: Records) -> Iterator[str]:
    """All good answers under a key are the same, and nobody is refused after one."""
    for operation in operations:
        if (good := operation.good) is None:
            continue
        for attempt in operation.attempts:
            if attempt.outcome is Outcome.OK and attempt.body != good.body:
                yield f"{_name(operation)} was answered differently: {good.body!r}, {attempt.body!r}"
            if attempt.outcome is Outcome.FAIL and attempt.invoked_at > good.returned_at:
                yield f"{_name(operation)} was refused after a good answer: {attempt.body!r}"


def nobody_sees_a_bug(operations: list[Operation], _: Records) -> Iterator[str]:
    """Of the server's own failures only ``503 unavailable`` is foreseen."""
    for operation in operations:
        for attempt in operation.attempts:
            if attempt.status >= 500 and attempt.status != 503:
                yield f"{_name(operation)} was answered {attempt.status}: {attempt.body!r}"
            if attempt.status in (400, 401, 403, 405, 422, 429):
                yield f"{_name(operation)} was not understood: {attempt.status} {attempt.body!r}"


def no_overlaps(_: list[Operation], records: Records) -> Iterator[str]:
    """No two live visits of a doctor or a patient overlap."""
    for whose in ("doctor_id", "patient_id"):
        visits: dict[str, list[Visit]] = defaultdict(list)
        for visit in records.visits:
            if visit.live:
                visits[getattr(visit, whose)].append(visit)
        for theirs in visits.values():
            theirs.sort(key=lambda visit: visit.start)
            for one, other in pairwise(theirs):
                if other.start < one.end:
                    yield f"{one.id} and {other.id} overlap for {whose} {getattr(one, whose)}"


def gapless_sequences(_: list[Operation], records: Records) -> Iterator[str]:
    """Every calendar's events are numbered 1, 2, 3 … and their epochs do not fall."""
    for doctor_id, events in records.calendars().items():
        epoch = 0
        for expected, event in enumerate(events, 1):
            if event.sequence != expected:
                yield f"calendar {doctor_id}: {event.sequence} stands where {expected} should"
                break
            if event.epoch < epoch:
                yield f"calendar {doctor_id}: epoch {event.epoch} of {event.sequence} follows {epoch}"
            epoch = max(epoch, event.epoch)


def tables_are_the_journal(_: list[Operation], records: Records) -> Iterator[str]:
    """``zapis verify`` finds nothing."""
    yield from records.differences


def slots_and_visits_agree(_: list[Operation], records: Records) -> Iterator[str]:
    """A slot is booked exactly if one live visit is in it, of its doctor."""
    live: dict[str, list[Visit]] = defaultdict(list)
    for visit in records.visits:
        if visit.live:
            live[visit.slot_id].append(visit)
    for slot in records.slots:
        visits = live.pop(slot.id, [])
        if len(visits) != (slot.status == "booked"):
            yield f"slot {slot.id} is {slot.status} with {len(visits)} live visits"
        elif visits and visits[0].doctor_id != slot.doctor_id:
            yield f"slot {slot.id} is of {slot.doctor_id}, its visit of {visits[0].doctor_id}"
    for slot_id in live:
        yield f"slot {slot_id} has a live visit and does not exist"


def each_visit_in_one_calendar(_: list[Operation], records: Records) -> Iterator[str]:
    """After all moves a live visit is in the calendar its row names, and in no other; a slot is never taken twice."""
    for move_id in records.open_moves:
        yield f"move {move_id} did not end"
    where: dict[str, set[str]] = defaultdict(set)
    for doctor_id, events in records.calendars().items():
        taken: dict[str, str] = {}
        seats: dict[str, str] = {}
        for event in events:
            visit_id, slot_id = _whereabouts(event)
            if visit_id is None:
                continue
            where[visit_id].discard(doctor_id)
            if (left := seats.pop(visit_id, None)) is not None:
                del taken[left]
            if slot_id is not None:
                if slot_id in taken:
                    yield f"slot {slot_id}: {visit_id} takes it at {event.sequence}, {taken[slot_id]} has it"
                    seats.pop(taken[slot_id])
                where[visit_id].add(doctor_id)
                taken[slot_id], seats[visit_id] = visit_id, slot_id
    for visit in records.visits:
        expected = {visit.doctor_id} if visit.live else set()
        if where[visit.id] != expected:
            yield f"visit {visit.id} is in {sorted(where[visit.id])}, should be in {sorted(expected)}"


def real_time_order(operations: list[Operation], records: Records) -> Iterator[str]:
    """What was answered before another was asked for stands before it in the same calendar."""
    commands = records.by_command()
    moved_in = {event.payload["move_id"]: event for event in records.events if event.kind == "AppointmentMovedIn"}
    placed: dict[str, list[tuple[int, Operation]]] = defaultdict(list)
    for operation in operations:
        for effect in _effects(operation, commands):
            placed[effect.doctor_id].append((effect.sequence, operation))
            if effect.kind == "AppointmentMovedOut" and (end := moved_in.get(effect.payload["move_id"])) is not None:
                placed[end.doctor_id].append((end.sequence, operation))
    for doctor_id, order in placed.items():
        order.sort(key=lambda pair: pair[0])
        earliest: tuple[float, Operation] | None = None  # Of those behind: the one that was answered first.
        for _, operation in reversed(order):
            if earliest is not None and earliest[0] < operation.invoked_at:
                yield f"calendar {doctor_id}: {_name(operation)} stands before {_name(earliest[1])}, answered earlier"
            good = operation.good
            if good is not None and (earliest is None or good.returned_at < earliest[0]):
                earliest = (good.returned_at, operation)


def every_change_is_told(_: list[Operation], records: Records) -> Iterator[str]:
    """Whatever was changed is planned, and its message sent, unless the visit was changed again before."""
    latest: dict[str, Cause] = {}
    for cause in records.causes:
        if not cause.planned:
            yield f"{_caused(cause)}: nobody has planned who hears of it"
        about = cause.visit_id or cause.id
        if about not in latest or (latest[about].version or 0) < (cause.version or 0):
            latest[about] = cause
    told = {(message.cause_id, message.kind) for message in records.messages if message.outcome == "sent"}
    for cause in latest.values():
        if (cause.id, cause.kind) not in told:
            yield f"{_caused(cause)}: nobody was told"
    for message in records.messages:
        if message.due:
            yield f"message {message.id} is still to be sent"


def what_is_sent_has_come(_: list[Operation], records: Records) -> Iterator[str]:
    """A message is marked as sent after it was, and every mail is a message of ours."""
    come = {arrival.message_id for arrival in records.arrivals}
    known = {message.id for message in records.messages}
    for message in records.messages:
        if message.outcome == "sent" and message.id not in come:
            yield f"message {message.id} counts as sent and did not come"
    for arrival in records.arrivals:
        if arrival.message_id not in known:
            yield f"mail {arrival.message_id} is no message"


def nothing_overtaken_is_told(operations: list[Operation], records: Records) -> Iterator[str]:
    """No mail tells of a visit as it was before a change that was answered, but for those that were on their way."""
    changed_at: dict[tuple[str, int], float] = {}
    for operation in operations:
        if (good := operation.good) is not None and operation.kind is not Kind.HOLD:
            changed_at[good.answer["id"], good.answer["version"]] = good.returned_at
    messages = {message.id: message for message in records.messages}
    for arrival in records.arrivals:
        message = messages.get(arrival.message_id)
        if message is not None and message.visit_id is not None and message.version is not None:
            overtaken_at = changed_at.get((message.visit_id, message.version + 1), float("inf"))
            if (late_s := arrival.at - overtaken_at) > ON_ITS_WAY_MAX_S:
                yield f"mail {message.id} tells of {message.visit_id} {late_s:.1f} s after that was changed"


def repeats_are_few(_: list[Operation], records: Records) -> Iterator[str]:
    """A mail comes again only if who had sent it died before writing that down."""
    repeats = len(records.arrivals) - len({arrival.message_id for arrival in records.arrivals})
    if repeats > records.in_flight_max:
        yield f"{repeats} mails came again, {records.in_flight_max} may have been under way when notifiers died"


RULES: tuple[Rule, ...] = (
    each_ok_once,
    each_fail_absent,
    one_effect_a_key,
    one_answer_a_key,
    nobody_sees_a_bug,
    no_overlaps,
    gapless_sequences,
    tables_are_the_journal,
    slots_and_visits_agree,
    each_visit_in_one_calendar,
    real_time_order,
    every_change_is_told,
    what_is_sent_has_come,
    nothing_overtaken_is_told,
    repeats_are_few,
)


def _effects(operation: Operation, commands: dict[str, list[Event]]) -> list[Event]:
    return [event for event in commands.get(operation.command_id, ()) if event.kind in EFFECTS[operation.kind]]


def _standing_hold(operation: Operation, good: Attempt, records: Records) -> list[Event]:
    """Who holds a slot already and asks for it again is told of the hold that stands, which another command made."""
    if operation.kind is not Kind.HOLD:
        return []
    told = (good.answer["id"], operation.slot_id, operation.user_id)
    held = [event for event in records.events if event.kind == "SlotHeld"]
    return [event for event in held if tuple(map(event.payload.get, ("hold_id", "slot_id", "user_id"))) == told]


def _differing(operation: Operation, good: Attempt, effect: Event) -> str | None:
    """Where a good answer and the event it tells of differ."""
    answer, payload = good.answer, effect.payload
    if operation.kind is Kind.HOLD:
        found = (payload["hold_id"], payload["slot_id"])
        told = (answer["id"], operation.slot_id)
    elif effect.kind == "AppointmentMovedOut":
        visit = payload["appointment"]
        found, told = (visit["id"], visit["slot_id"]), (answer["id"], operation.slot_id)
    else:
        found = (payload["appointment_id"], payload.get("slot_id"))
        told = (answer["id"], operation.slot_id)
    if operation.visit_id is not None and answer["id"] != operation.visit_id:
        return f"{operation.visit_id} was asked for, {answer['id']} was told"
    return None if found == told else f"told {told}, the journal says {found}"


def _whereabouts(event: Event) -> tuple[str | None, str | None]:
    """The visit that an event is about, and the slot it has in this calendar from then on."""
    payload = event.payload
    match event.kind:
        case "AppointmentBooked" | "AppointmentRescheduled":
            return payload["appointment_id"], payload["slot_id"]
        case "AppointmentCancelled":
            return payload["appointment_id"], None
        case "AppointmentMovedIn":
            return payload["appointment"]["id"], payload["appointment"]["slot_id"]
        case "AppointmentMovedOut":
            return payload["appointment"]["id"], None
        case _:
            return None, None


def _caused(cause: Cause) -> str:
    return (
        f"{cause.kind} of {cause.visit_id}, version {cause.version}" if cause.visit_id else f"{cause.kind} {cause.id}"
    )


def _name(operation: Operation) -> str:
    return f"{operation.key} of {operation.user_id}"
