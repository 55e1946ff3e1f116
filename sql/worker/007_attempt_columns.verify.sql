-- The state that 007 must have left. The columns are those of runtime/070.

with checks (id, label, expected, observed) as (
    select 'W19', 'columns of iu_route_attempt present', '5',
           (select count(*)::text from pg_catalog.pg_attribute a
             where a.attrelid = to_regclass('public.iu_route_attempt')
               and a.attname in ('route_count', 'xact_id', 'traceparent', 'batch_xact_id', 'target') and not a.attisdropped)
)
select c.id, c.label, c.expected, c.observed, c.expected = c.observed as pass
  from checks c
 order by c.id;
