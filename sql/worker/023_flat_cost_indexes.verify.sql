-- The state that 023 must have left. The columns are those of runtime/070.

with checks (id, label, expected, observed) as (
    select 'W30', 'indexes for bounded reads are valid', '5',
           (select count(*)::text from pg_catalog.pg_index i
             where i.indisvalid and i.indexrelid in (to_regclass('public.iu_route_attempt_failed_idx'),
                                                     to_regclass('public.iu_route_dead_letter_worker_idx'),
                                                     to_regclass('public.iu_route_dead_letter_unwritten_idx'),
                                                     to_regclass('public.iu_completeness_missing_open_idx'),
                                                     to_regclass('public.iu_completeness_missing_accepted_idx')))
)
select c.id, c.label, c.expected, c.observed, c.expected = c.observed as pass
  from checks c
 order by c.id;
