-- The state that 022 must have left. The columns are those of runtime/070.

with checks (id, label, expected, observed) as (
    -- The trigger of 010 names no domains and works for all of them.
    select 'W29', 'the bell has the domains that have a worker',
           (select array_agg(d.name order by d.name)::text
              from (select 'iu' as name union select c.event_domain from public.iu_route_worker_cursor c) d),
           (select substring(pg_get_triggerdef(t.oid) from $re$ANY \('(.*?)'::text\[\]\)$re$)
              from pg_catalog.pg_trigger t
             where t.tgrelid = 'public.event_outbox'::regclass and t.tgname = 'zz_event_outbox_bell')
)
select c.id, c.label, c.expected, coalesce(c.observed, 'all') as observed,
       c.expected is not distinct from coalesce(c.observed, c.expected) as pass
  from checks c
 order by c.id;
