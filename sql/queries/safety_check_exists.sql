-- Whether a route is kept from being enabled and not a dry run: by the CHECK of the base, or by the guard that replaces
-- it.

select exists (select from pg_constraint c
                where c.conrelid = 'public.iu_outbound_route'::regclass and c.conname = 'iu_outbound_route_safe_chk'
                  and c.convalidated)
    or exists (select from pg_trigger t
                where t.tgrelid = 'public.iu_outbound_route'::regclass and t.tgname = 'zz_iu_outbound_route_guard'
                  and t.tgenabled in ('O', 'A'))
