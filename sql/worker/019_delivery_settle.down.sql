-- Takes away who delivers, and how attempts are settled. Deliveries wait.
--
-- loses: which routes were held or stopped, and why
-- refuses: never
-- locks: nothing that anybody else uses

-- "if exists": a package of which something is missing must be able to be taken back.
drop function if exists public.fn_iu_delivery_settle(
    text, uuid, text[], bigint[], double precision[], double precision[], text[], bigint[], text[], double precision[],
    double precision[], text[], text[], double precision[]);
drop function if exists public.fn_iu_route_resume(text);
drop function if exists public.fn_iu_delivery_release(text, uuid);
drop function if exists public.fn_iu_delivery_lease(text, uuid, double precision, boolean, uuid);
drop function if exists public.fn_iu_delivery_held(text, boolean, boolean, timestamptz, timestamptz);
-- As it was before, with rows of tables that may be missing too, and then the function is gone with them.
do $$
begin
    if to_regclass('public.iu_delivery_breaker') is not null then
        drop function if exists public.fn_iu_delivery_held(public.iu_outbound_route, public.iu_delivery_breaker);
    end if;
end
$$;

drop table if exists public.iu_delivery_breaker;
drop table if exists public.iu_delivery_lease;
