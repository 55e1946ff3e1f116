-- The stamp: gives each event its position. The triggers of 005 call it.
--
-- kind: repeatable
-- needs: nothing
-- calls: 005
-- locks: nothing that other sessions use

-- Unconditional: the values that a client sends in these two columns are never used, whether by an explicit value,
-- COPY, a logical replication worker or a data-only restore. An invented xact_id would lie before every cursor, so the
-- event would be lost; an invented event_seq would break the order of its subject.
create or replace function public.fn_iu_outbox_stamp()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    new.xact_id   := pg_current_xact_id();
    new.event_seq := nextval('public.event_outbox_event_seq');
    return new;
end
$$;
comment on function public.fn_iu_outbox_stamp() is
    'Sets xact_id and event_seq of an event to the current transaction and the next number.';
