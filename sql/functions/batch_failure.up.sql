-- The size of a page, and the handling of failed batches: the caller of a failed batch records the failure here, in a
-- transaction of its own, before the next batch.
--
-- A batch fails as a whole if an event, or the work of its routes, makes a statement raise an error that no savepoint
-- can contain (a serialization failure, a system error, a time-out), ends the server process, or takes longer than the
-- deadline. If it were repeated unchanged, it would fail forever. So the cursor stores the failures (008), and the
-- batch (009) takes them into account:
--
--   no failure -- recorded -> a page of n events failed: the next page takes half of them
--        ^                              | a page succeeds: the event is one of the others   (failed_events counts down)
--        |                              v a page of one event fails, or the error names the event
--        |                         the event is known: the events before it are routed first, then it alone
--        |                              | 5 failures alone
--        |                              v
--        +-- the event succeeds, or becomes a dead letter: of the route that raised, otherwise of all its routes
--
-- A batch that timed out counts as 3 failures, because each costs a whole deadline. It also halves page_limit, which
-- grows again with every full page that takes less than two seconds.
--
-- Nothing is written here while batches succeed. A failure that no event has caused (for example a restart of the
-- server) costs a few smaller pages.
--
-- kind: repeatable
-- needs: 008
-- locks: nothing that other sessions use

-- A page is limited in events, but its cost is its attempts, one for each route of an event. If events go to more than
-- ten routes, the page is shortened in advance, before a deadline is exceeded.
create or replace function public.fn_iu_route_page(p_domain text, p_types text[], p_streams text[], p_batch_limit integer)
returns integer
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
select greatest(1, count(*) filter (where p.attempts <= p_batch_limit::bigint * 10))::integer
  from (select sum(coalesce(r.routes, 1)) over (order by k.n) as attempts
          from unnest(p_types, p_streams) with ordinality k(event_type, event_stream, n)
          left join (select x.event_type, x.event_stream, count(*) as routes
                       from public.iu_outbound_route x
                      where x.event_domain = p_domain and x.enabled
                      group by x.event_type, x.event_stream) r
            on r.event_type = k.event_type and r.event_stream = k.event_stream) p
$$;
comment on function public.fn_iu_route_page(text, text[], text[], integer) is
    'How many of these events fit on one page: at most ten attempts for each event of p_batch_limit, and at least one '
    'event.';

create or replace function public.fn_iu_route_candidates(p_routes public.iu_outbound_route[], p_types text[], p_streams text[])
returns public.iu_outbound_route[]
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
with kinds as materialized (
    select distinct k.event_type, k.event_stream from unnest(p_types, p_streams) k(event_type, event_stream)
)
select array_agg(x.route) filter (where x.enabled or x.n = 1)
  from (select r as route, r.enabled, row_number() over (partition by r.event_type, r.event_stream) as n
          from unnest(p_routes) r
          join kinds k on k.event_type = r.event_type and k.event_stream = r.event_stream) x
$$;
comment on function public.fn_iu_route_candidates(public.iu_outbound_route[], text[], text[]) is
    'Of these routes, those that events of these types and streams can take; of the disabled ones at least one for '
    'each type and stream, to tell route_disabled from no_route.';

create or replace function public.fn_iu_route_worker_failed(
    p_worker_name text, p_batch_limit integer, p_why text, p_timed_out boolean default false,
    p_event_ref uuid default null, p_route_code text default null)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
declare
    c        public.iu_route_worker_cursor;
    v_limit  integer;
    v_next   uuid[];
    v_events integer;
    v_event  uuid := p_event_ref;
begin
    select w.* into c from public.iu_route_worker_cursor w where w.worker_name = p_worker_name for update;
    if v_event is null then
        v_limit := least(p_batch_limit, c.page_limit, (c.failed_events + 1) / 2);
        v_next := public.fn_iu_outbox_next(c, v_limit);
        select v_next[:public.fn_iu_route_page(c.event_domain, array_agg(o.event_type::text order by n.n),
                                               array_agg(o.event_stream::text order by n.n), p_batch_limit)]
          into v_next
          from unnest(v_next) with ordinality n(id, n)
          join public.event_outbox o on o.id = n.id;
        v_events := cardinality(v_next);
        if v_events = 1 or v_next[1] = c.failed_event then
            v_event := v_next[1];
            p_route_code := case when v_event = c.failed_event then c.failed_route end;
        elsif c.failed_event = any (v_next) then
            v_events := array_position(v_next, c.failed_event) - 1;
        end if;
    end if;
    update public.iu_route_worker_cursor w
       set failures = case when v_event is not distinct from c.failed_event and p_route_code is not distinct from c.failed_route
                           then c.failures else 0 end + case when p_timed_out then 3 else 1 end,
           failed_at = clock_timestamp(), failed_why = left(p_why, 1000),
           failed_event = v_event, failed_route = p_route_code,
           failed_events = case when v_event is null then nullif(v_events, 0) end,
           page_limit = case when p_timed_out and v_events > 1 then least(c.page_limit, v_events) / 2 else c.page_limit end
     where w.worker_name = p_worker_name;
end
$$;
comment on function public.fn_iu_route_worker_failed(text, integer, text, boolean, uuid, text) is
    'Records that a batch of at most p_batch_limit events failed, with the error, whether it timed out, and the event '
    'and route that the error named. The following batches isolate the event, and give it up if it fails alone.';

create or replace function public.fn_iu_outbox_next(p_cursor public.iu_route_worker_cursor, p_limit integer)
returns uuid[]
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce((
        select array_agg(n.id order by n.event_seq, n.id)
          from (select u.id, u.event_seq
                  from (select o.id, o.event_seq, o.xact_id
                          from public.event_outbox o
                         where o.event_domain = p_cursor.event_domain and o.xact_id >= pg_snapshot_xmax(p_cursor.prev)
                        union all
                        select o.id, o.event_seq, o.xact_id
                          from pg_snapshot_xip(p_cursor.prev) x(xid)
                          join public.event_outbox o on o.event_domain = p_cursor.event_domain and o.xact_id = x.xid) u
                 where (pg_visible_in_snapshot(u.xact_id, p_cursor.tick)
                        and (u.event_seq, u.id) <= (p_cursor.pos_seq, p_cursor.pos_id)) is not true
                   and (u.xact_id = p_cursor.own_xid and u.event_seq <= p_cursor.own_seq) is not true
                   and (p_cursor.tick is null or pg_visible_in_snapshot(u.xact_id, p_cursor.tick))
                 order by u.event_seq, u.id
                 limit p_limit) n), '{}');
end
$$;
comment on function public.fn_iu_outbox_next(public.iu_route_worker_cursor, integer) is
    'The events of the next page of a cursor, in order. For rare use: it sorts all unread events.';
