-- The state that 006 must have left. The columns are those of runtime/070.

with checks (id, label, expected, observed) as (
    select 'W14', 'indexes of the cursor are valid', '2',
           (select count(*)::text from pg_catalog.pg_index i
             where i.indisvalid
               and i.indexrelid in (to_regclass('public.event_outbox_tick_idx'),
                                    to_regclass('public.event_outbox_order_idx')))
)
select c.id, c.label, c.expected, c.observed, c.expected = c.observed as pass
  from checks c
 order by c.id;
