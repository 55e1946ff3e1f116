-- Drops the ledger: the last step of a rollback.
--
-- loses: the times and roles of the application of each file
-- refuses: while any other file is recorded as applied
-- locks: nothing that other sessions use

do $$
begin
    if exists (select from public.iu_migration m where m.name <> 'worker/004_migration_ledger') then
        raise exception 'other files are still applied' using errcode = 'object_not_in_prerequisite_state',
            hint = 'Roll them back first: iu-listen rollback';
    end if;
end
$$;

drop table public.iu_migration;
