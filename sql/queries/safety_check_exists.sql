-- Whether something forbids a route to be enabled and not dry: the CHECK of the substrate, or the guard after it.

select exists (select from pg_constraint c
                where c.conrelid = 'public.iu_outbound_route'::regclass and c.conname = 'iu_outbound_route_safe_chk'
                  and c.convalidated)
    or exists (select from pg_trigger t
                where t.tgrelid = 'public.iu_outbound_route'::regclass and t.tgname = 'zz_iu_outbound_route_guard'
                  and t.tgenabled in ('O', 'A'))
