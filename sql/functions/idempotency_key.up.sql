-- The idempotency key of a route and an event.
--
-- kind: repeatable
-- needs: nothing
-- locks: nothing that other sessions use

-- Python makes the same key from the columns of a delivery (model/delivery.py). The planner inlines this function,
-- because it has no SET clause and an expression as its body: a condition on the key uses the index on the key.
create or replace function public.fn_iu_idempotency_key(p_route_code text, p_event_ref uuid)
returns text
language sql
immutable
parallel safe
return 'outbound:' || p_route_code || ':' || p_event_ref::text;
comment on function public.fn_iu_idempotency_key(text, uuid) is
    'The idempotency key of a route and an event: the same for every attempt, so a receiver can recognize a repeated '
    'delivery.';
