-- Drops the functions of the circuit breaker. Deliveries wait.
--
-- loses: nothing
-- refuses: never
-- locks: nothing that other sessions use

-- "if exists": a package with missing objects must be removable as well.
drop function if exists public.fn_iu_route_resume(text);
drop function if exists public.fn_iu_breaker_success(text[], text[]);
-- The parameters of these functions are types that may be missing; then the functions are missing as well.
do $$
begin
    if to_regtype('public.iu_delivery_breaker') is not null then
        drop function if exists public.fn_iu_breaker_store(public.iu_delivery_breaker);
        drop function if exists public.fn_iu_breaker_after(
            public.iu_delivery_breaker, text, jsonb, timestamptz, bigint, boolean, double precision, text, double precision);
    end if;
end
$$;
