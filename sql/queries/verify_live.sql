-- W1 to W9 for a database that is in use. W1 to W8 are those of runtime/070, of which W4, W5 and W8 accept more values
-- there (install/verify.py). For W9, 070 counts all events; here the backlog is that of health, which has a bound.

with seam as (
    -- The seam always raises, so it cannot be called in a query that must continue; its source text is checked instead.
    select p.prosrc ~ '\mraise exception\M' and p.prosrc !~* '\m(return\s+jsonb|insert|update|perform)\M' as closed
      from pg_catalog.pg_proc p
     where p.oid = to_regprocedure('public.fn_iu_route_deliver(text,uuid,jsonb)')
), health as (
    select public.fn_iu_route_worker_health('iu_outbound_default') as h
), checks (id, label, expected, observed) as (
    select 'W1', 'substrate tables present', '2',
           (select count(*)::text from pg_catalog.pg_class k
             where k.relnamespace = 'public'::regnamespace and k.relkind = 'r'
               and k.relname in ('iu_route_worker_cursor', 'iu_route_dead_letter'))
    union all
    select 'W2', 'worker functions present', '5',
           (select count(*)::text from pg_catalog.pg_proc p
             where p.pronamespace = 'public'::regnamespace
               and p.proname in ('fn_iu_route_worker_enabled', 'fn_iu_route_worker_run', 'fn_iu_route_deliver',
                                 'fn_iu_route_dead_letter_replay', 'fn_iu_route_worker_health'))
    union all
    select 'W3', 'observability views present', '3',
           (select count(*)::text from pg_catalog.pg_class k
             where k.relnamespace = 'public'::regnamespace and k.relkind = 'v'
               and k.relname in ('v_iu_route_attempt_summary', 'v_iu_event_backlog', 'v_iu_route_dead_letter_open'))
    union all
    select 'W4', 'worker gate (seeded inert)', 'false',
           coalesce((select d.value from public.dot_config d where d.key = 'iu_core.route_worker_enabled'), 'missing')
    union all
    select 'W5', 'iu_outbound_default cursor registered, fresh (null keyset)', 'fresh',
           coalesce((select case when w.last_created_at is null and w.last_event_id is null
                                      and w.tick is null and w.prev::text = '3:3:' then 'fresh'
                                 else 'has run' end
                       from public.iu_route_worker_cursor w where w.worker_name = 'iu_outbound_default'), 'missing')
    union all
    select 'W6', 'delivery seam fails closed', 'true',
           coalesce((select s.closed::text from seam s), 'missing')
    union all
    select 'W7', 'worker checks both gates', 'true',
           coalesce((select (p.prosrc ~ '\mfn_iu_core_routes_enabled\M'
                             and p.prosrc ~ '\mfn_iu_route_worker_enabled\M')::text
                       from pg_catalog.pg_proc p
                      where p.oid = to_regprocedure('public.fn_iu_route_worker_run(text,integer)')), 'missing')
    union all
    select 'W8', 'health check', 'healthy=true, worker_gate_open=false',
           (select 'healthy=' || (h.h ->> 'healthy') || ', worker_gate_open=' || (h.h ->> 'worker_gate_open')
              from health h)
    union all
    select 'W9', 'backlog view', 'a number', (select h.h ->> 'backlog' from health h)
)
select c.id, c.label, c.expected, c.observed, c.expected is not distinct from c.observed as pass
  from checks c
 order by c.id
