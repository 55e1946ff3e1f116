-- The state that 011 must have left. The columns are those of runtime/070.

with checks (id, label, expected, observed) as (
    select 'W24', 'indexes of attempts and dead letters are valid', '5',
           (select count(*)::text from pg_catalog.pg_index i
             where i.indisvalid and i.indexrelid in (to_regclass('public.iu_route_attempt_tick_idx'),
                                                     to_regclass('public.iu_route_dead_letter_tick_idx'),
                                                     to_regclass('public.iu_route_dead_letter_open_idx'),
                                                     to_regclass('public.iu_route_dead_letter_kind_idx'),
                                                     to_regclass('public.iu_route_dead_letter_age_idx')))
)
select c.id, c.label, c.expected, c.observed, c.expected = c.observed as pass
  from checks c
 order by c.id;
