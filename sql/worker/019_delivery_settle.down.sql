-- Drops the delivery lease, the circuit breaker and the settlement of attempts. Deliveries wait.
--
-- loses: which routes were paused or stopped, and the reasons
-- refuses: never
-- locks: nothing that other sessions use

-- "if exists": a package with missing objects must be removable as well.
drop function if exists public.fn_iu_delivery_settle(
    text, uuid, text[], bigint[], uuid[], text[], double precision[], double precision[], text[], bigint[], uuid[], text[],
    double precision[], double precision[], text[], text[], text[], double precision[], boolean[]);
drop function if exists public.fn_iu_delivery_lease_renew(text, uuid, boolean);
drop function if exists public.fn_iu_delivery_settle_sent(
    text[], bigint[], uuid[], text[], double precision[], double precision[]);
drop function if exists public.fn_iu_delivery_unrecorded(text, uuid, text, bigint, text, text);
drop function if exists public.fn_iu_delivery_interrupted(text[], bigint[]);
drop function if exists public.fn_iu_breaker_success(text[], text[]);
drop function if exists public.fn_iu_delivery_in_flight(text, uuid, text[], bigint[]);
drop function if exists public.fn_iu_route_resume(text);
drop function if exists public.fn_iu_delivery_release(text, uuid);
drop function if exists public.fn_iu_delivery_lease(text, uuid, double precision, boolean, uuid);
drop function if exists public.fn_iu_delivery_paused_by(text, boolean, boolean, timestamptz, timestamptz);
-- The parameters of these functions are row types of tables, or types, that may be missing; then the functions are
-- missing as well.
do $$
begin
    if to_regtype('public.iu_delivery_failure') is not null then
        drop function if exists public.fn_iu_delivery_settle_failed(public.iu_delivery_failure);
    end if;
    if to_regclass('public.iu_delivery_breaker') is not null then
        drop function if exists public.fn_iu_breaker_store(public.iu_delivery_breaker);
        drop function if exists public.fn_iu_breaker_after(
            public.iu_delivery_breaker, text, jsonb, timestamptz, bigint, boolean, double precision, text,
            double precision);
    end if;
    if to_regclass('public.iu_route_delivery') is not null then
        drop function if exists public.fn_iu_delivery_dead_letter(
            public.iu_route_delivery, text, text, jsonb, timestamptz, boolean);
    end if;
end
$$;

drop type if exists public.iu_delivery_failure;
drop table if exists public.iu_delivery_breaker;
drop table if exists public.iu_delivery_lease;
