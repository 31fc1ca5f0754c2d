"""The functions of the database, each in its one current text.

A migration that needs a newer one executes it again. Older migrations execute it too: what it says of tables is looked
at when it runs, so it may speak of columns that come later.

``journal_append`` is the journal's transaction. One statement is one round trip and one transaction: a client that
stops in the middle holds nothing open, and a statement that fails takes everything with it. What it raises is told
apart by SQLSTATE: ``ZP001`` a calendar is at another epoch or sequence (the detail lists the doctors), ``ZP002``
something only the database can see stands against the batch.

Every part comes as an argument of its own and is NULL where there is nothing of it: ``json`` is read from its beginning
at each look into it, so one argument with all parts would be read dozens of times over.

The function's plans are made once in a session, perhaps while the tables are still empty, and kept: so it is told to go
by index and row by row, which is never slow for a batch of rows, however many there are in the tables by then.
"""

from __future__ import annotations

JOURNAL_APPEND = """
CREATE OR REPLACE FUNCTION journal_append(
    calendars json, locks bigint[], events json, commands json, new_slots json, slots json, holds_gone uuid[], holds json,
    appointments json, closures json, closures_removed json, moves_reserved json, moves_changed json, notifications json,
    audits json, patients uuid[], limited_patients uuid[],
    overridden_patients uuid[], holders uuid[], live_appointments_max integer,
    holds_max integer, decided_at timestamptz, look_up uuid[]
) RETURNS json
LANGUAGE plpgsql
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
AS $function$
DECLARE
    stale uuid[];
    written integer;
    overlap boolean;
    too_many boolean;
BEGIN
    -- Fence and number. Sorted, so that two batches never wait for each other.
    WITH fence AS MATERIALIZED (
        SELECT * FROM json_to_recordset(calendars)
            AS f(doctor_id uuid, epoch bigint, expected bigint, reached bigint, last_event_at timestamptz)
    ), numbered AS (
        UPDATE calendar AS c
        SET sequence = f.reached, last_event_at = f.last_event_at, changed_in = pg_current_xact_id()
        FROM fence AS f
        WHERE f.reached > f.expected
            AND c.doctor_id = f.doctor_id AND c.epoch = f.epoch AND c.sequence = f.expected
        RETURNING c.doctor_id
    )
    SELECT array_agg(f.doctor_id) INTO stale
    FROM fence AS f
    WHERE CASE
        WHEN f.reached > f.expected THEN NOT EXISTS (SELECT FROM numbered AS n WHERE n.doctor_id = f.doctor_id)
        ELSE NOT EXISTS (SELECT FROM calendar AS c WHERE c.doctor_id = f.doctor_id AND c.epoch = f.epoch)
    END;
    IF stale IS NOT NULL THEN
        RAISE EXCEPTION 'calendar claimed by another activation'
            USING ERRCODE = 'ZP001', DETAIL = array_to_string(stale, ',');
    END IF;

    -- One writer at a time for each patient and holder concerned; keys come sorted.
    PERFORM pg_advisory_xact_lock(k.lock_key) FROM unnest(locks) AS k(lock_key);

    -- An erasure takes the same locks: whoever it has found without visits gets none afterwards.
    IF patients IS NOT NULL AND EXISTS (SELECT FROM patient WHERE id = ANY (patients) AND data_key IS NULL) THEN
        RAISE EXCEPTION 'patient erased' USING ERRCODE = 'ZP002';
    END IF;

    -- Write.
    IF events IS NOT NULL THEN
        INSERT INTO event (doctor_id, sequence, epoch, at, kind, payload, command_id, effect)
        SELECT e.doctor_id, e.sequence, e.epoch, e.at, e.kind, e.payload, e.command_id, e.effect
        FROM json_to_recordset(events) AS e(
            doctor_id uuid, sequence bigint, epoch bigint, at timestamptz, kind text, payload jsonb, command_id uuid,
            effect jsonb);
    END IF;
    IF commands IS NOT NULL THEN
        INSERT INTO command (command_id, user_id, fingerprint, answer, at)
        SELECT c.command_id, c.user_id, c.fingerprint, c.answer, c.at
        FROM json_to_recordset(commands) AS c(
            command_id uuid, user_id uuid, fingerprint text, answer jsonb, at timestamptz);
    END IF;
    IF new_slots IS NOT NULL THEN
        INSERT INTO slot (id, doctor_id, location_id, service_id, starts_at, ends_at, status, blocked, held_until)
        SELECT s.id, s.doctor_id, s.location_id, s.service_id, s.starts_at, s.ends_at, s.status, s.blocked,
            s.held_until
        FROM json_to_recordset(new_slots) AS s(
            id uuid, doctor_id uuid, location_id uuid, service_id uuid, starts_at timestamptz, ends_at timestamptz,
            status text, blocked boolean, held_until timestamptz);
    END IF;
    IF slots IS NOT NULL THEN
        UPDATE slot AS s
        SET status = n.status, blocked = n.blocked, held_until = n.held_until
        FROM json_to_recordset(slots) AS n(
            id uuid, doctor_id uuid, status text, blocked boolean, held_until timestamptz)
        WHERE s.id = n.id AND s.doctor_id = n.doctor_id;
    END IF;
    IF holds_gone IS NOT NULL THEN
        DELETE FROM hold WHERE id = ANY (holds_gone);
    END IF;
    IF holds IS NOT NULL THEN
        INSERT INTO hold (id, doctor_id, slot_id, user_id, expires_at)
        SELECT h.id, h.doctor_id, h.slot_id, h.user_id, h.expires_at
        FROM json_to_recordset(holds) AS h(
            id uuid, doctor_id uuid, slot_id uuid, user_id uuid, expires_at timestamptz);
    END IF;
    IF appointments IS NOT NULL THEN
        INSERT INTO appointment AS a (
            id, doctor_id, patient_id, booked_by, slot_id, location_id, service_id, starts_at, ends_at, status, live,
            displaced, version, moves, created_at, updated_at, reason, cancel_reason, open_move_id)
        SELECT n.id, n.doctor_id, n.patient_id, n.booked_by, n.slot_id, n.location_id, n.service_id, n.starts_at,
            n.ends_at, n.status, n.live, n.displaced, n.version, n.moves, n.created_at, n.updated_at,
            decode(n.reason, 'base64'), decode(n.cancel_reason, 'base64'), n.open_move_id
        FROM json_to_recordset(appointments) AS n(
            id uuid, doctor_id uuid, patient_id uuid, booked_by uuid, slot_id uuid, location_id uuid, service_id uuid,
            starts_at timestamptz, ends_at timestamptz, status text, live boolean, displaced boolean, version integer,
            moves integer, created_at timestamptz, updated_at timestamptz, reason text, cancel_reason text,
            open_move_id uuid)
        ON CONFLICT (id) DO UPDATE SET
            doctor_id = excluded.doctor_id, slot_id = excluded.slot_id, location_id = excluded.location_id,
            service_id = excluded.service_id, starts_at = excluded.starts_at, ends_at = excluded.ends_at,
            status = excluded.status, live = excluded.live, displaced = excluded.displaced,
            version = excluded.version, moves = excluded.moves, updated_at = excluded.updated_at,
            reason = coalesce(excluded.reason, a.reason),
            cancel_reason = coalesce(excluded.cancel_reason, a.cancel_reason),
            open_move_id = excluded.open_move_id;
    END IF;
    IF closures IS NOT NULL THEN
        INSERT INTO closure (id, doctor_id, windows, ends_at, reason, created_by, created_at)
        SELECT c.id, c.doctor_id, c.windows, c.ends_at, decode(c.reason, 'base64'), c.created_by, c.created_at
        FROM json_to_recordset(closures) AS c(
            id uuid, doctor_id uuid, windows jsonb, ends_at timestamptz, reason text, created_by uuid,
            created_at timestamptz);
    END IF;
    IF closures_removed IS NOT NULL THEN
        UPDATE closure AS c SET removed_at = r.removed_at
        FROM json_to_recordset(closures_removed) AS r(id uuid, removed_at timestamptz)
        WHERE c.id = r.id;
    END IF;
    -- What ends before what begins: a move may be released and its slot kept anew in one batch. Since when a move has
    -- been left behind goes by the clock here: that of an actor may be an hour ahead, and nobody would drive it on.
    IF moves_changed IS NOT NULL THEN
        UPDATE move AS m SET state = n.state, updated_at = now()
        FROM json_to_recordset(moves_changed) AS n(id uuid, state text, before text[])
        WHERE m.id = n.id AND m.state = ANY (n.before);
        GET DIAGNOSTICS written = ROW_COUNT;
        IF written < json_array_length(moves_changed) THEN
            RAISE EXCEPTION 'move in another state' USING ERRCODE = 'ZP002';
        END IF;
    END IF;
    IF moves_reserved IS NOT NULL THEN
        INSERT INTO move AS m (
            id, appointment_id, source_doctor_id, target_doctor_id, target_slot_id, state, request, created_at,
            updated_at)
        SELECT n.id, n.appointment_id, n.source_doctor_id, n.target_doctor_id, n.target_slot_id, 'reserved', n.request,
            n.at, now()
        FROM json_to_recordset(moves_reserved) AS n(
            id uuid, appointment_id uuid, source_doctor_id uuid, target_doctor_id uuid, target_slot_id uuid,
            request jsonb, at timestamptz)
        ON CONFLICT (id) DO UPDATE SET
            state = 'reserved', source_doctor_id = excluded.source_doctor_id,
            target_doctor_id = excluded.target_doctor_id, target_slot_id = excluded.target_slot_id,
            request = excluded.request, updated_at = excluded.updated_at
        WHERE m.state = 'released';
        GET DIAGNOSTICS written = ROW_COUNT;
        IF written < json_array_length(moves_reserved) THEN
            RAISE EXCEPTION 'move already under way' USING ERRCODE = 'ZP002';
        END IF;
    END IF;
    IF notifications IS NOT NULL THEN
        INSERT INTO outbox (id, kind, doctor_id, sequence, appointment_id, version, user_id, due_at)
        SELECT o.id, o.kind, o.doctor_id, o.sequence, o.appointment_id, o.version, o.user_id, o.due_at
        FROM json_to_recordset(notifications) AS o(
            id uuid, kind text, doctor_id uuid, sequence bigint, appointment_id uuid, version integer, user_id uuid,
            due_at timestamptz);
    END IF;
    IF audits IS NOT NULL THEN
        INSERT INTO audit (id, at, user_id, role, action, subject, subject_id, override)
        SELECT a.id, a.at, a.user_id, a.role, a.action, a.subject, a.subject_id, decode(a.override, 'base64')
        FROM json_to_recordset(audits) AS a(
            id uuid, at timestamptz, user_id uuid, role text, action text, subject text, subject_id uuid,
            override text);
    END IF;

    -- What only the database can see: other calendars.
    IF patients IS NOT NULL THEN
        SELECT bool_or(visits.overlap),
            bool_or(live_appointments_max > 0 AND p.id = ANY (limited_patients) AND visits.coming > live_appointments_max
                + (SELECT count(*) FROM unnest(overridden_patients) AS o(id) WHERE o.id = p.id))
        INTO overlap, too_many
        FROM unnest(patients) AS p(id)
        CROSS JOIN LATERAL (
            -- Of visits in the order of their start, two overlap only if two neighbours do. A new one begins after it
            -- was decided and none lasts longer than a day: those of long ago are not in its way.
            SELECT bool_or(a.starts_at < a.previous_ends_at) AS overlap,
                count(*) FILTER (WHERE a.ends_at > decided_at) AS coming
            FROM (
                SELECT starts_at, ends_at, lag(ends_at) OVER (ORDER BY starts_at) AS previous_ends_at
                FROM appointment
                WHERE patient_id = p.id AND live AND starts_at > decided_at - interval '7 days'
            ) AS a
        ) AS visits;
        IF overlap THEN
            RAISE EXCEPTION 'patient elsewhere at that time' USING ERRCODE = 'ZP002';
        END IF;
        IF too_many THEN
            RAISE EXCEPTION 'too many live appointments' USING ERRCODE = 'ZP002';
        END IF;
    END IF;
    IF holds_max > 0 AND holders IS NOT NULL THEN
        SELECT bool_or(kept.standing > holds_max) INTO too_many
        FROM unnest(holders) AS u(id)
        CROSS JOIN LATERAL (
            SELECT count(*) AS standing FROM hold AS h WHERE h.user_id = u.id AND h.expires_at > decided_at
        ) AS kept;
        IF too_many THEN
            RAISE EXCEPTION 'too many holds' USING ERRCODE = 'ZP002';
        END IF;
    END IF;

    -- Nobody is refused whose command was accepted before.
    IF look_up IS NOT NULL THEN
        RETURN (
            SELECT json_agg(json_build_array(c.command_id, c.fingerprint, c.user_id, c.answer))
            FROM command AS c
            WHERE c.command_id = ANY (look_up)
        );
    END IF;
    RETURN NULL;
END
$function$
"""
