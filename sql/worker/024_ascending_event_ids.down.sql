-- Event ids are random again, on the neutral base.
--
-- loses: nothing
-- refuses: never
-- locks: ACCESS EXCLUSIVE on event_outbox, for the catalogue change only

-- "if exists": a package with missing objects must be removable as well.
do $$
begin
    if to_regclass('public.event_outbox') is not null and to_regclass('public.information_unit') is null then
        alter table public.event_outbox alter column id set default gen_random_uuid();
    end if;
end
$$;
