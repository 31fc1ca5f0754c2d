"""The live appointments of a calendar: a mapping of their ids to what they are, packed when nothing happens to them.

A calendar in memory is mostly one that nobody is changing, and a visit takes some 550 bytes as objects, mostly ids and
instants, but 240 as a record beside its slot. What was put in since ``pack`` was last called is kept as it is, so that
a batch of commands unpacks only what it changes; what has ended is there until then. Pure.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, MutableMapping
from datetime import UTC, datetime, timedelta
from itertools import chain
from struct import Struct

from actors.messages import AppointmentState, AppointmentStatus
from actors.slots import Slot

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_RECORD = Struct("<16s16s16sqqIIB")
"""Ids of the patient, the one who booked and the slot; created, updated; version, moves, status."""
_STATUSES = tuple(AppointmentStatus)
_STATUS_NUMBERS = {status: number for number, status in enumerate(_STATUSES)}


class Appointments(MutableMapping[str, AppointmentState]):
    """Appointments by id. What is read is a value: it is changed by putting another one in its place."""

    __slots__ = ("_by_patient", "_packed", "_recent", "_slots")

    def __init__(self, slots: Mapping[str, Slot]) -> None:
        """``slots`` are the calendar's own: none of them ever leaves it or changes its time or place."""
        self._slots = slots
        self._recent: dict[str, AppointmentState] = {}
        self._packed: dict[str, bytes] = {}
        self._by_patient: list[str] = []
        """Ids of those packed, sorted by their records, of which the patient comes first: 8 bytes for each."""

    def __getitem__(self, appointment_id: str) -> AppointmentState:
        recent = self._recent.get(appointment_id)
        return self._unpack(appointment_id, self._packed[appointment_id]) if recent is None else recent

    def __setitem__(self, appointment_id: str, appointment: AppointmentState) -> None:
        if appointment_id in self._packed:
            self._remove_packed(appointment_id)
        self._recent[appointment_id] = appointment

    def __delitem__(self, appointment_id: str) -> None:
        if appointment_id in self._recent:
            del self._recent[appointment_id]
        else:
            self._remove_packed(appointment_id)

    def __contains__(self, appointment_id: object) -> bool:
        return appointment_id in self._recent or appointment_id in self._packed

    def __iter__(self) -> Iterator[str]:
        return chain(self._packed, self._recent)

    def __len__(self) -> int:
        return len(self._packed) + len(self._recent)

    def of_patient(self, patient_id: str) -> Iterator[AppointmentState]:
        """All of a patient's, in no order."""
        for appointment in self._recent.values():
            if appointment.patient_id == patient_id:
                yield appointment
        patient = _packed_id(patient_id)
        if patient is None:
            return
        index = bisect_left(self._by_patient, patient, key=self._packed.__getitem__)
        while index < len(self._by_patient):
            record = self._packed[self._by_patient[index]]
            if not record.startswith(patient):
                return
            yield self._unpack(self._by_patient[index], record)
            index += 1

    def pack(self) -> None:
        """Pack what was put in since the last time, but what no record can say, and let go of what is not live."""
        kept = {}
        for appointment_id, appointment in self._recent.items():
            if not appointment.status.live:
                continue
            record = self._record(appointment)
            if record is None:
                kept[appointment_id] = appointment
            else:
                self._packed[appointment_id] = record
                insort(self._by_patient, appointment_id, key=self._packed.__getitem__)
        self._recent = kept

    def _remove_packed(self, appointment_id: str) -> None:
        record = self._packed[appointment_id]
        first = bisect_left(self._by_patient, record, key=self._packed.__getitem__)
        del self._by_patient[self._by_patient.index(appointment_id, first)]
        del self._packed[appointment_id]

    def _record(self, appointment: AppointmentState) -> bytes | None:
        """The record; none if the ids are not UUIDs, or the appointment is not at the time and place of its slot."""
        patient = _packed_id(appointment.patient_id)
        booker = _packed_id(appointment.booked_by)
        slot_key = _packed_id(appointment.slot_id)
        slot = self._slots.get(appointment.slot_id)
        if patient is None or booker is None or slot_key is None or slot is None:
            return None
        if (slot.start, slot.end) != (appointment.start, appointment.end):
            return None
        if (slot.location_id, slot.service_id) != (appointment.location_id, appointment.service_id):
            return None
        return _RECORD.pack(
            patient,
            booker,
            slot_key,
            (appointment.created_at - _EPOCH) // _MICROSECOND,
            (appointment.updated_at - _EPOCH) // _MICROSECOND,
            appointment.version,
            appointment.moves,
            _STATUS_NUMBERS[appointment.status],
        )

    def _unpack(self, appointment_id: str, record: bytes) -> AppointmentState:
        patient, booker, slot_key, created, updated, version, moves, status = _RECORD.unpack(record)
        slot = self._slots[_unpacked_id(slot_key)]
        return AppointmentState(
            id=appointment_id,
            patient_id=_unpacked_id(patient),
            booked_by=_unpacked_id(booker),
            slot_id=slot.id,
            location_id=slot.location_id,
            service_id=slot.service_id,
            start=slot.start,
            end=slot.end,
            status=_STATUSES[status],
            version=version,
            moves=moves,
            created_at=_EPOCH + timedelta(microseconds=created),
            updated_at=_EPOCH + timedelta(microseconds=updated),
        )


def _packed_id(identifier: str) -> bytes | None:
    """A UUID as its 16 bytes; none for any other id, and for one that is not written as ``_unpacked_id`` does."""
    if len(identifier) != 36 or identifier[8:24:5] != "----" or identifier != identifier.lower():
        return None
    try:
        packed = bytes.fromhex(identifier.replace("-", ""))
    except ValueError:
        return None
    return packed if len(packed) == 16 else None


def _unpacked_id(packed: bytes) -> str:
    digits = packed.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
