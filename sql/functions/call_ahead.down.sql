-- Drops the call ahead. The consumer calls targets after the routing decision.
--
-- loses: nothing
-- refuses: never
-- locks: nothing that other sessions use

-- "if exists": a package with missing objects must be removable as well.
drop function if exists public.fn_iu_delivery_of_call(text, uuid, text, uuid, boolean);
drop function if exists public.fn_iu_delivery_peek(text, text[]);
