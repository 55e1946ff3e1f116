-- Drops the functions that cancel, replay and resolve in parts. Deliveries and dead letters stay unchanged.
--
-- loses: nothing
-- refuses: never
-- locks: nothing that other sessions use

-- "if exists": a package with missing objects must be removable as well.
drop function if exists public.fn_iu_dead_letters_resolve(uuid[], text, text);
drop function if exists public.fn_iu_dead_letters_replay(
    text, text, timestamptz, uuid, text, text, timestamptz, timestamptz, uuid, integer);
drop function if exists public.fn_iu_dead_letter_decide(
    public.iu_route_dead_letter, public.iu_outbound_route, integer);
drop function if exists public.fn_iu_dead_letters_queue(uuid[], boolean, text);
drop function if exists public.fn_iu_dead_letters_open(
    text, text, timestamptz, uuid, text, timestamptz, timestamptz, uuid, integer);
drop function if exists public.fn_iu_delivery_cancel(text, uuid, text, text, bigint, bigint, integer);
