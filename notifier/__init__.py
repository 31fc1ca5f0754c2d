"""Messages to people: what is to be said is in the outbox, who hears of it, when and by which channel is decided here.

Three steps, each of which may be cut off at any point:

    caused    the transaction that changes something writes one row into ``outbox``: a kind and ids, nothing else. The
              journal does so for events of calendars, the repositories for messages about accounts
    planned   a notifier takes such a row and writes, in one transaction, a row into ``notification`` for everyone who
              should hear of it, each channel that they want, and each reminder: unique by cause, kind, offset, channel
              and user, so a cause that is planned twice makes nothing twice. What an earlier version of the visit still
              had to say is void then
    sent      a notifier of the channel leases rows that are due, one by one by ``SKIP LOCKED``, sends them, and writes
              down what became of each

What holds:

- A row ends once, as ``sent``, ``void`` (the visit has been changed since), ``late`` (it would not matter any more),
  ``unwanted`` (the user does not want it by now), ``unreachable`` (there is no address to send to), ``capped`` (too
  many in a day) or ``dead`` (refused for good, or tried for as long as it mattered). Who can be sent to is decided when
  it is sent, not when it is planned: a visit that was moved, a channel that was switched off are seen then.
- It is marked after it was sent, never before. A notifier that dies between the two leaves the row leased; when the
  lease has ended another sends it again. The message carries an id made of the row's, so that the repeat is known as
  one. A lease lasts longer than an attempt may, and an attempt that could outlast its lease is not begun. What was sent
  is marked before anything more is leased, after an outage of the database too.
- An attempt that fails in passing is made again after a pause that doubles, for as long as the message matters and four
  days at most; one that fails for good ends the row. A provider that is away holds up nobody's row for longer than it
  is away: while nothing gets through, one row at a time is tried. Push services are many: none holds up another's rows.
- In the quiet hours of a user nothing is said that can wait, whenever it was planned: what is late waits for their end.
- What is due, and until when a lease lasts, is told by the database's clock; those of the nodes may be wrong.
- Whoever fails, in whatever way, delays no other: every message is a task of its own.
- A signal from Redis wakes a notifier; that it looks every second does not depend on it.
"""
