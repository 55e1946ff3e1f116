-- The remains of an interrupted run: partitions with a pending detachment, and detached tables that are still closed.

select p.part::oid as oid, regexp_replace(p.part::text, '^public\.', '') as name, true as pending
  from public.fn_iu_outbox_partitions() p
 where p.pending
union all
select g.tgrelid, regexp_replace(g.tgrelid::regclass::text, '^public\.', ''), false
  from pg_trigger g
 where g.tgname = 'zz_event_outbox_retired'
   and not exists (select from pg_inherits i where i.inhrelid = g.tgrelid)
