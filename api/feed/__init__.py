"""Calendars and appointments as they change: one stream of changes for a process, and all who follow it."""
