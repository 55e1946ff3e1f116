-- Creates a cursor for the probe that starts now: it reads only events that this transaction writes.
--
-- $1 text  worker
--
-- If 005 was applied in this same transaction, the older events have its xid as well. 006 numbered them below zero, so
-- they count as consumed own events. A repeated call sets the cursor back to this position.

insert into public.iu_route_worker_cursor as w (worker_name, event_domain, lineage, prev, own_xid, own_seq)
select $1, 'iu', a.lineage, public.fn_iu_outbox_tick(), pg_current_xact_id(), 0
  from public.iu_outbox_anchor a
on conflict (worker_name) do update
   set prev = excluded.prev, own_xid = excluded.own_xid, own_seq = excluded.own_seq,
       tick = null, tick_floor = null, pos_seq = null, pos_id = null, last_created_at = null, last_event_id = null
