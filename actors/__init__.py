"""Calendars as actors: what holds, which states there are, and what each failure does.

Every doctor's calendar (slots, holds, live appointments) is the unit of consistency. It has one decider at a time: an
*activation* inside a *calendar actor*, a Ray actor that owns many calendars (placement ``shared``) or one
(``dedicated``). PostgreSQL is the truth; memory runs ahead of it by at most what is not committed yet, and nobody is
told of what is ahead.

What must always hold
---------------------

1. **One decider.** At most one activation of a calendar can change it. The actor's name normally sees to that; the
   *epoch* in PostgreSQL guarantees it: each activation raises it, each write names it, the database refuses lower ones.
2. **Nothing acknowledged is lost.** ``Done`` means committed. What is only decided is called ``Pending``.
3. **Nothing is doubled.** No two live appointments overlap for a doctor, nor for a patient. The calendar decides so;
   exclusion constraints stand behind it, so a bug in the actor cannot double-book.
4. **A repeated command has one effect.** Its first success is stored under its ``command_id`` in the transaction of the
   effect and given again, from whichever calendar.
5. **A reply never reveals what may still be undone, nor what has been overtaken.** Any answer, yes or no, leaves only
   when every change it was decided on is committed, and after an epoch check begun after the decision.
6. **Events of one calendar are gapless**: sequence 1, 2, 3 … in the journal and for every reader.
7. **Redis holds nothing that cannot be rebuilt**, and nothing in this package knows it.
8. **Reading never waits for an actor**: searches are served from PostgreSQL; booking checks again.

The path of a command
---------------------

``client`` puts it into the lane of its calendar actor; what waits there travels in one Ray call. The actor *decides*
each command of the batch in order (``decisions.decide``, pure), *evolves* the state at once so that the next command
sees it, and queues the outcome. One flush loop *appends* all that waits, for all its calendars, in one transaction, and
only then *replies*. While one transaction is under way the next batch gathers: there are no timers.

What an event changed for readers (``changes.Effect``) is written beside it in the same transaction and announced once
that is committed. An announcement promises nothing, as the actor may die before it; whoever follows a calendar compares
numbers and reads what is missing from the journal.

The transaction (``persistence.journal``) fences every calendar in it by epoch and sequence, serialises on the patients
and users concerned, writes events, answers, rows and outbox, and checks what no single calendar can see: a patient's
visits with other doctors, limits that span doctors. A batch of refusals writes nothing, but makes the same check of
epochs and looks the command ids up: nobody is refused whose command was accepted before.

States
------

An activation::

            command for it           claimed and loaded             idle, nothing uncommitted
    absent ───────────────▶ activating ───────────────▶ active ───────────────────────────────▶ absent
       ▲                        │                        │  ▲
       │    cannot be claimed   │        stale epoch     │  │ conflict: loaded again under its epoch
       └────────────────────────┘◀───────────────────────┘  │ outcome unknown: claimed and loaded again
                                                         └──┘ then what was decided is decided again, in order

While a calendar is activating its commands are answered ``NotDecided(NOT_ACTIVE)`` and the client sends them again: a
batch never waits for an activation. What calendars of one actor do share is the transaction: if it is refused all of
them are decided again, and a calendar that is refused twice is committed apart from the others.

A slot::

    free ──hold──▶ held ──book──▶ booked          blocked: closed by hand or by a closure, over any of the others
      ▲             │               │             cancelled: withdrawn for good
      └──expired, ──┘◀──cancelled,──┘
         released        moved away

A hold ends by time, not by a timer: past ``expires_at`` it reads as free everywhere, and the next decision about its
slot emits ``HoldExpired`` first. A slot that is reserved for a move reads as held, and has no timer.

An appointment::

    booked ──reschedule──▶ rescheduled ─┐        live: booked, rescheduled, arrived
      └───────────────arrive────────────┴──▶ arrived ──fulfil──▶ fulfilled
      any live one ──cancel──▶ cancelled     any live one ──fulfil──▶ fulfilled
      booked or rescheduled ──no-show──▶ noshow

It is *displaced* while it is live and its slot is blocked or cancelled. Each change raises its ``version``.

A move to another doctor crosses two calendars, and actors never call actors: the ``move`` row remembers how far it got
and whoever drives it (the API, else the supervisor) takes the next step. Each step is one calendar's transaction::

    (a) target            (b) source, the commit point          (c) target
    ──▶ reserved ──┬── AppointmentMovedOut ──▶ moved ──── AppointmentMovedIn ────▶ done
           ▲       └── MoveRefused ─────────▶ aborted ─── ReservationReleased ──▶ released
           └───────────────────────── a new attempt under the same key ──────────────┘

Whoever was told that a move is pending finds a refusal by its source under its id, as that of any such command, as long
as the driver that told them is the one that drives it on (``MoveOut.told_pending``). That the visit is in the calendar
no longer is none: it may be in another. Then, or if the driver is gone, the command is lost, and a repeat decided anew.

There is one appointment row all the while. Its doctor changes in (b), so a patient's 09:00 may become 09:15 elsewhere
without overlapping itself. Only ``aborted`` frees the reservation. An activation that finds a ``moved`` one takes the
appointment in before it decides anything.

What each failure does
----------------------

===============================================  =====================================================================
the actor's process dies                         What it had not committed is gone and was told to nobody as done. Ray
                                                 starts it again; the client sends again under the same ids; those that
                                                 had been committed are answered from the command table.
two actors own a calendar (a node comes back)    The later epoch wins. The other's next transaction, even of refusals
                                                 only, raises ``StaleEpoch``: it drops the calendar and says so.
the transaction is refused                       Rolled back whole, a definite no (``Conflict``). The calendars are
(overlap elsewhere, limit, id used, deadlock)    loaded again and the commands decided again, in order, with the facts
                                                 found, at most ``redecide_max`` times, then ``UNAVAILABLE``.
the connection is lost around COMMIT             ``OutcomeUnknown``: claim a new epoch (which waits for the old
                                                 transaction to end), look each command id up, answer from what is
                                                 there, decide the rest again.
PostgreSQL is away                               Decisions go on in memory. After ``commit_timeout_s`` a waiting caller
                                                 is told ``Pending``; once a commit is overdue, at once. Refusals are
                                                 ``UNAVAILABLE``, for a no could not be checked. Past
                                                 ``journal_backlog_max`` commands are ``OVERLOADED``. When it is back
                                                 the backlog commits; what was pending and is refused then has its
                                                 refusal stored under its id.
a claim is blocked by a stuck owner              After a second the blocking backends are terminated.
calendars are placed anew while running          Commands carry the placement's generation. An actor that knows a newer
                                                 one says ``MISPLACED``; a claim under an older one is refused.
a queue is full                                  ``OVERLOADED`` at once: lanes, the backlog and active calendars are
                                                 bounded.
the caller has gone (deadline passed)            Work not yet decided is not done (``EXPIRED``).
the clock steps back                             A calendar's time stands still until the clock has caught up with its
                                                 last event.
two clocks disagree                              Nothing goes by both: what is left until a deadline is counted by the
                                                 sender's own clock.
a call comes when it has been given up           It is known by its number and not obeyed: its sender may have been told
                                                 no since.
===============================================  =====================================================================

Where to look: ``calendar`` is the state and how events change it, of ``slots`` and packed ``appointments``; ``changes``
is what readers see of that; ``decisions`` decides, ``policy`` has the rules, ``availability`` makes slots of templates,
``messages`` names all that is said, ``errors`` the refusals. These nine are pure: standard library only, no clock, no
randomness, no waiting.
``calendar_actor`` is the shell, ``senders`` what it knows of those who call, ``entries`` what it has decided and makes
a transaction of, ``tally`` what it knows when it decides again, ``journal`` what it asks of the database, ``client``
the way in. ``tasks`` is for all packages: tasks that go on by themselves.

Decisions
---------

- *A calendar is not a process.* A Ray actor costs 51 MB and takes half a second to start; a calendar costs some hundred
  kilobytes. So calendars share actors, and ownership is per calendar, in PostgreSQL. Consequence: their number and
  placement can change while running.
- *State tables beside the journal.* Both are written in one transaction, so an activation loads rows and replays
  nothing; ``zapis verify`` proves that replaying the journal gives the same rows.
- *One statement is the transaction.* ``journal_append`` does it all on the server: one round trip, and a stopped client
  holds nothing open.
"""
