-- Takes away what cancels, replays and resolves in parts. Deliveries and dead letters stay as they are.
--
-- loses: nothing
-- refuses: never
-- locks: nothing that anybody else uses

-- "if exists": a package of which something is missing must be able to be taken back.
drop function if exists public.fn_iu_dead_letters_resolve(uuid[], text, text);
drop function if exists public.fn_iu_dead_letters_replay(
    text, text, timestamptz, uuid, text, text, timestamptz, timestamptz, uuid, integer);
drop function if exists public.fn_iu_dead_letters_queue(uuid[], boolean, text);
drop function if exists public.fn_iu_dead_letters_open(
    text, text, timestamptz, uuid, text, timestamptz, timestamptz, uuid, integer);
drop function if exists public.fn_iu_delivery_cancel(text, uuid, text, text, bigint, bigint, integer);
