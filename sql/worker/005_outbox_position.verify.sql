-- The state that 005 must have left. The columns are those of runtime/070.

with checks (id, label, expected, observed) as (
    select 'W10', 'columns of event_outbox present', '3',
           (select count(*)::text from pg_catalog.pg_attribute a
             where a.attrelid = 'public.event_outbox'::regclass and not a.attisdropped
               and a.attname in ('xact_id', 'event_seq', 'traceparent'))
    union all
    select 'W11', 'triggers of the stamp fire always', '2',
           (select count(*)::text from pg_catalog.pg_trigger t
             where t.tgrelid = 'public.event_outbox'::regclass and t.tgenabled = 'A'
               and t.tgname in ('zz_event_outbox_stamp', 'zz_event_outbox_restamp'))
    union all
    select 'W12', 'sequence of event numbers has CACHE 1', '1',
           (select s.seqcache::text from pg_catalog.pg_sequence s
             where s.seqrelid = to_regclass('public.event_outbox_event_seq'))
)
select c.id, c.label, c.expected, coalesce(c.observed, 'missing') as observed,
       c.expected is not distinct from c.observed as pass
  from checks c
 order by c.id;
