-- Drops the retention policies. Deleted rows stay deleted.
--
-- loses: the policies, and the counts of deleted rows
-- refuses: while a policy is enabled
-- locks: nothing that other sessions use

do $$
begin
    if to_regclass('public.iu_retention_policy') is not null then
        if exists (select from public.iu_retention_policy p where p.enabled) then
            raise exception 'a retention policy is enabled' using errcode = 'object_not_in_prerequisite_state',
                hint = 'Disable it first: iu-listen retention set WHAT --off';
        end if;
    end if;
end
$$;

-- "if exists": a package with missing objects must be removable as well.
drop table if exists public.iu_retention_policy;
