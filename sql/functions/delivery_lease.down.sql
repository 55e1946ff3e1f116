-- Drops the functions of the delivery lease. Deliveries wait.
--
-- loses: nothing
-- refuses: never
-- locks: nothing that other sessions use

-- "if exists": a package with missing objects must be removable as well.
drop function if exists public.fn_iu_delivery_release(text, uuid);
drop function if exists public.fn_iu_delivery_record_in_flight(text, uuid, text[], bigint[]);
drop function if exists public.fn_iu_delivery_lease_renew(text, uuid, boolean);
drop function if exists public.fn_iu_delivery_lease(text, uuid, double precision, boolean, uuid);
