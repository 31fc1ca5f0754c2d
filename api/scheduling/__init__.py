"""Slots, holds and appointments: what patients and staff do with calendars."""
