-- Drops the settlement of deliveries. Deliveries wait.
--
-- loses: nothing
-- refuses: never
-- locks: nothing that other sessions use

-- "if exists": a package with missing objects must be removable as well.
drop function if exists public.fn_iu_delivery_settle(
    text, uuid, text[], bigint[], uuid[], text[], double precision[], double precision[], text[], bigint[], uuid[], text[],
    double precision[], double precision[], text[], text[], text[], double precision[], boolean[]);
drop function if exists public.fn_iu_delivery_settle_sent(
    text[], bigint[], uuid[], text[], double precision[], double precision[]);
drop function if exists public.fn_iu_delivery_unrecorded(text, uuid, text, bigint, text, text);
drop function if exists public.fn_iu_delivery_interrupted(text[], bigint[]);
-- The parameters of these functions are types that may be missing; then the functions are missing as well.
do $$
begin
    if to_regtype('public.iu_delivery_failure') is not null then
        drop function if exists public.fn_iu_delivery_settle_failed(public.iu_delivery_failure);
    end if;
    if to_regtype('public.iu_route_delivery') is not null then
        drop function if exists public.fn_iu_delivery_dead_letter(
            public.iu_route_delivery, text, text, jsonb, timestamptz, boolean);
    end if;
end
$$;
