-- Something breaks for one unit: its decisions cannot be written any more.

create function public.fn_demo_breakage()
returns trigger
language plpgsql
set search_path = ''
as $$
begin
    if new.status = 'dry_run'
       and exists (select from public.event_outbox o
                    where o.id = new.event_ref and o.canonical_address = 'demo/broken') then
        raise exception 'demo: the downstream rule for demo/broken is violated';
    end if;
    return new;
end
$$;

create trigger demo_breakage before insert on public.iu_route_attempt
    for each row execute function public.fn_demo_breakage();
