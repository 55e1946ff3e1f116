-- The statements that detach a partition from the outbox, by name; identifiers cannot be parameters. A detached table
-- keeps no dependency on the outbox: neither the package's trigger nor a default that uses its sequence, because both
-- would prevent a rollback.
--
-- $1 oid  partition

select format('create or replace trigger zz_event_outbox_retired before insert or update on %s '
              'for each row execute function public.fn_iu_outbox_retired(); '
              'comment on trigger zz_event_outbox_retired on %1$s is ''Nothing enters any more: it is about to be detached.''; '
              'alter table %1$s enable always trigger zz_event_outbox_retired', p.part) as close,
       format('alter table %s disable trigger zz_event_outbox_retired', p.part) as open,
       format('lock table %s in share row exclusive mode', p.part) as lock,
       format('alter table public.event_outbox detach partition %s', p.part) as detach,
       format('alter table public.event_outbox detach partition %s concurrently', p.part) as detach_concurrently,
       format('alter table public.event_outbox detach partition %s finalize', p.part) as finalize,
       format('drop trigger if exists zz_event_outbox_retired on %s; '
              'alter table %1$s alter column event_seq drop default', p.part) as leave,
       format('drop table %s', p.part) as drop
  from (select $1::oid::regclass as part) p
