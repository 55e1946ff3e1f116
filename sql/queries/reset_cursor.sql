-- Sets a cursor to a snapshot; its totals are kept.
--
-- $1 text  worker     $2 text  snapshot that counts as consumed; 3:3: is the beginning, null is now

update public.iu_route_worker_cursor w
   set prev = coalesce($2::text::pg_snapshot, public.fn_iu_outbox_tick()),
       -- Without this, events that are skipped now would be unread again after a restore.
       hi_seq = case when $2 is null
                     then greatest(w.hi_seq, (select s.last_value - (not s.is_called)::integer
                                                 from public.event_outbox_event_seq s))
                     else w.hi_seq end,
       tick = null, tick_floor = null, pos_seq = null, pos_id = null, own_xid = null, own_seq = null,
       last_created_at = null, last_event_id = null
 where w.worker_name = $1
returning w.prev::text
