-- A cursor of the probe's own, starting now: it sees what this transaction writes, and nothing else.
--
-- $1 text  worker
--
-- Where 005 was created in this very transaction, the events that were there before carry its xid too. 006 numbered
-- them below zero, so they count as own events that are consumed. Run again, it puts the cursor back there.

insert into public.iu_route_worker_cursor as w (worker_name, event_domain, lineage, prev, own_xid, own_seq)
select $1, 'iu', a.lineage, public.fn_iu_outbox_tick(), pg_current_xact_id(), 0
  from public.iu_outbox_anchor a
on conflict (worker_name) do update
   set prev = excluded.prev, own_xid = excluded.own_xid, own_seq = excluded.own_seq,
       tick = null, tick_floor = null, pos_seq = null, pos_id = null, last_created_at = null, last_event_id = null
