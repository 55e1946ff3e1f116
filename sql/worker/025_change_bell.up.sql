-- Triggers that wake the consumers when a route, or a switch of the deliveries, has been changed, so that an idle consumer
-- need not read them every second.
--
-- since: 1.1
-- needs: 008, functions/wake
-- locks: SHARE ROW EXCLUSIVE on iu_outbound_route and dot_config, briefly, to create a trigger

-- Not deferred: a table with a deferred trigger that has not fired yet cannot be altered in the same transaction. A row
-- trigger, because each change of dot_config runs an update of the routes, which seldom changes a row (012).
create trigger zz_iu_outbound_route_bell
    after insert or update or delete on public.iu_outbound_route
    for each row
    execute function public.fn_iu_ring_after_change();
comment on trigger zz_iu_outbound_route_bell on public.iu_outbound_route is
    'Wakes the consumers when a route is added, changed or removed, so that the change takes effect at once.';

create trigger zz_dot_config_delivery_bell
    after insert or update of value on public.dot_config
    for each row
    when (new.key in ('iu_core.delivery_enabled', 'iu_core.delivery_live_routes'))
    execute function public.fn_iu_ring_after_change();
comment on trigger zz_dot_config_delivery_bell on public.dot_config is
    'Wakes the consumers when the delivery gate or the list of live routes is changed, so that the change takes effect at '
    'once.';

alter table public.iu_outbound_route enable always trigger zz_iu_outbound_route_bell;
alter table public.dot_config enable always trigger zz_dot_config_delivery_bell;
