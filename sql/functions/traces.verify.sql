-- The state that functions/traces must have left. The columns are those of runtime/070.

with checks (id, label, expected, observed) as (
    select 'W25', 'views of attempts and dead letters have span ids', '2',
           (select count(*)::text from pg_catalog.pg_attribute a
             where a.attrelid in (to_regclass('public.v_iu_route_attempt'),
                                  to_regclass('public.v_iu_route_dead_letter_open'))
               and a.attname = 'span_id')
)
select c.id, c.label, c.expected, c.observed, c.expected = c.observed as pass
  from checks c
 order by c.id;
