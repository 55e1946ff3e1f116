-- Drops the handling of failed batches. A batch that fails because of an event is repeated unchanged.
--
-- loses: nothing; the failure columns of the cursor keep their values until a batch resets them
-- refuses: never
-- locks: nothing that other sessions use

-- "if exists": a package with missing objects must be removable as well.
drop function if exists public.fn_iu_route_worker_failed(text, integer, text, boolean, uuid, text);
drop function if exists public.fn_iu_outbox_next(public.iu_route_worker_cursor, integer);
drop function if exists public.fn_iu_route_candidates(public.iu_outbound_route[], text[], text[]);
drop function if exists public.fn_iu_route_page(text, text[], text[], integer);
