-- Drops the functions that read the next deliveries. Deliveries wait.
--
-- loses: nothing
-- refuses: never
-- locks: nothing that other sessions use

-- "if exists": a package with missing objects must be removable as well.
drop function if exists public.fn_iu_delivery_hand_over(text, text[], integer[], bigint[]);
drop function if exists public.fn_iu_delivery_take(
    text, text[], integer[], bigint[], bigint[], bigint[], text[], bigint[], bigint);
drop function if exists public.fn_iu_delivery_rows(public.iu_outbound_route, bigint[], bigint, bigint);
drop function if exists public.fn_iu_delivery_next_due(text, bigint[]);
drop function if exists public.fn_iu_delivery_choose(
    text, text, boolean, integer, integer, bigint, bigint, bigint[], text[], bigint[]);
drop function if exists public.fn_iu_delivery_newest(text, text, boolean, bigint);
drop function if exists public.fn_iu_delivery_new(text, text, boolean, integer, bigint, bigint);
drop function if exists public.fn_iu_delivery_due(text, text, integer, bigint[], text[], bigint[]);
drop function if exists public.fn_iu_delivery_first(text, bigint);
drop function if exists public.fn_iu_event_payload(jsonb, bigint);
