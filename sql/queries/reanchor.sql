-- Adopts the present history, or answers the plan for it.
--
-- $1 timestamptz  events created since then are read again, or null
-- $2 boolean      true: even if no worker refuses
-- $3 boolean      true: change nothing, answer the plan

select public.fn_iu_outbox_reanchor($1::timestamptz, $2, $3)::text
