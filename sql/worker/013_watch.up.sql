-- What watches need to know: whether an event lies behind a cursor.
--
-- needs: 008
-- locks: nothing that exists

-- The algebra of the cursor for one event, in one place: health, audit and retention ask it. The run itself and the
-- backlog view have it unfolded, where an index must serve it; tests hold them to it.
--
-- A SQL-standard body: its names are bound when it is created, and without a SET clause it can be inlined.
create function public.fn_iu_outbox_consumed(
    p_cursor public.iu_route_worker_cursor, p_xact_id xid8, p_event_seq bigint, p_id uuid)
returns boolean
language sql
stable
return coalesce(pg_visible_in_snapshot(p_xact_id, (p_cursor).prev), false)
    or coalesce(pg_visible_in_snapshot(p_xact_id, (p_cursor).tick)
                and (p_event_seq, p_id) <= ((p_cursor).pos_seq, (p_cursor).pos_id), false)
    or coalesce(p_xact_id = (p_cursor).own_xid and p_event_seq <= (p_cursor).own_seq, false);
comment on function public.fn_iu_outbox_consumed(public.iu_route_worker_cursor, xid8, bigint, uuid) is
    'Whether the event with this position has been read by the worker of this cursor.';
