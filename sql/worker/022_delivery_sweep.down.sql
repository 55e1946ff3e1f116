-- Takes the sweep away. Deliveries wait.
--
-- loses: nothing
-- refuses: never
-- locks: nothing that anybody else uses

-- "if exists": a package of which something is missing must be able to be taken back.
drop function if exists public.fn_iu_delivery_seek(text, text, bigint, bigint);
drop function if exists public.fn_iu_delivery_sweep(text, text, bigint, bigint);
