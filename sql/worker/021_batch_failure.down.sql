-- Takes away how failures of a batch are noted. A batch that an event makes fail is repeated as it is.
--
-- loses: nothing; what is noted on the cursor stays until it goes
-- refuses: never
-- locks: nothing that anybody else uses

-- "if exists": a package of which something is missing must be able to be taken back.
drop function if exists public.fn_iu_route_worker_failed(text, integer, text, boolean, uuid, text);
drop function if exists public.fn_iu_outbox_next(public.iu_route_worker_cursor, integer);
drop function if exists public.fn_iu_route_candidates(public.iu_outbound_route[], text[], text[]);
drop function if exists public.fn_iu_route_page(text, text[], text[], integer);
