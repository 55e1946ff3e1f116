-- The delivery lease: the right of one consumer to deliver for a worker.
--
-- At any time one consumer delivers for a worker: the holder of the delivery lease. Taking a delivery does not mark its
-- row: all rows of the worker belong to the lease holder as long as it has the lease, so taking costs no write. Each
-- settlement renews the lease in its own transaction, so a consumer that has lost the lease settles nothing.
--
-- The lease ends when its holder releases it, when it was not renewed in time, or when the session of its holder has
-- ended; so after a kill -9 no consumer has to wait until the lease expires. A holder that has lost only its session
-- must be able to notice that before another consumer takes the lease. Therefore a consumer that wants the lease asks
-- twice. If the holder had no session at the first request, the second request names that holder, and gets the lease if
-- the holder is still the same. Setting the clock back does not prolong a lease.
--
-- A lease that ended without being released may mean that a delivery has ended the process of its holder (a
-- segmentation fault, lack of memory, a call that blocks the event loop for longer than the lease). For some time the
-- next holder then records the deliveries in flight (in_flight_routes, in_flight_ids) before it calls their targets:
-- docs/why/delivery.md, "A delivery that ends the process".
--
-- kind: repeatable
-- needs: 012
-- calls: functions/delivery_settle
-- locks: nothing that other sessions use

create or replace function public.fn_iu_delivery_lease(
    p_worker_name text, p_owner uuid, p_seconds double precision, p_pooled boolean, p_gone_holder uuid)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
declare
    l         public.iu_delivery_lease;
    v_now     timestamptz;
    v_start   timestamptz;
    v_gone    boolean;
    v_valid   boolean;
    v_unclean boolean;
begin
    insert into public.iu_delivery_lease (worker_name, owner, seconds, released)
    values (p_worker_name, p_owner, p_seconds, true)
    on conflict do nothing;
    select x.* into l from public.iu_delivery_lease x where x.worker_name = p_worker_name for update;
    v_now := clock_timestamp();
    v_gone := l.backend is not null
              and not exists (select from pg_catalog.pg_stat_activity a
                               where a.pid = l.backend and coalesce(a.backend_start = l.backend_start, true));
    v_valid := not l.released and v_now between l.renewed_at and l.renewed_at + l.seconds * interval '1 second';
    if v_valid and l.owner <> p_owner and not (v_gone and l.owner is not distinct from p_gone_holder) then
        return jsonb_build_object('held', false, 'holder', l.owner, 'holder_gone', v_gone);
    end if;
    v_unclean := not l.released and (l.owner <> p_owner or not v_valid);
    if v_unclean then
        perform public.fn_iu_delivery_interrupted(l.in_flight_routes, l.in_flight_ids);
    end if;
    select a.backend_start into v_start from pg_catalog.pg_stat_activity a where a.pid = pg_backend_pid();
    update public.iu_delivery_lease x
       set owner = p_owner, seconds = p_seconds, renewed_at = v_now, released = false,
           backend = case when not p_pooled then pg_backend_pid() end,
           backend_start = case when not p_pooled then v_start end,
           in_flight_routes = case when v_unclean or l.released then '{}' else x.in_flight_routes end,
           in_flight_ids = case when v_unclean or l.released then '{}' else x.in_flight_ids end
     where x.worker_name = p_worker_name;
    return jsonb_build_object('held', true, 'continuous', l.owner = p_owner and v_valid, 'unclean', v_unclean);
end
$$;
comment on function public.fn_iu_delivery_lease(text, uuid, double precision, boolean, uuid) is
    'Takes or renews the delivery lease of a worker, if it is free. continuous: the caller has held it without a '
    'break. holder_gone: the session of the holder has ended; a caller that asks again and names that holder in '
    'p_gone_holder gets the lease. unclean: the lease ended without being released, and the deliveries that were '
    'recorded as in flight were marked.';

create or replace function public.fn_iu_delivery_lease_renew(p_worker_name text, p_owner uuid, p_settles boolean)
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    -- A call that settles nothing must not wait for the disk: it renews the lease only when a quarter of its time is
    -- over.
    if not p_settles and exists (
           select from public.iu_delivery_lease l
            where l.worker_name = p_worker_name and l.owner = p_owner and not l.released
              and now() between l.renewed_at and l.renewed_at + l.seconds / 4 * interval '1 second') then
        return true;
    end if;
    update public.iu_delivery_lease l
       set renewed_at = now(), settled_at = case when p_settles then now() else l.settled_at end
     where l.worker_name = p_worker_name and l.owner = p_owner and not l.released;
    return found;
end
$$;
comment on function public.fn_iu_delivery_lease_renew(text, uuid, boolean) is
    'Part of fn_iu_delivery_settle; uses its planner settings. Renews the delivery lease of a worker. p_settles: the '
    'transaction settles deliveries. False: the caller does not have the lease.';

create or replace function public.fn_iu_delivery_record_in_flight(p_worker_name text, p_owner uuid, p_routes text[], p_ids bigint[])
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
begin
    update public.iu_delivery_lease l
       set in_flight_routes = p_routes, in_flight_ids = p_ids
     where l.worker_name = p_worker_name and l.owner = p_owner and not l.released;
    return found;
end
$$;
comment on function public.fn_iu_delivery_record_in_flight(text, uuid, text[], bigint[]) is
    'Records the deliveries that the lease holder is about to attempt. False: the caller does not have the lease.';

create or replace function public.fn_iu_delivery_release(p_worker_name text, p_owner uuid)
returns void
language sql
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
    update public.iu_delivery_lease x set released = true where x.worker_name = p_worker_name and x.owner = p_owner
$$;
comment on function public.fn_iu_delivery_release(text, uuid) is
    'Releases the delivery lease of a worker, if the caller has it.';
