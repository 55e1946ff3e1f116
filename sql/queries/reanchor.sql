-- Make the history our own, or say what that would mean.
--
-- $1 timestamptz  events created since are read again, or null
-- $2 boolean      although no worker refuses
-- $3 boolean      change nothing, answer the plan

select public.fn_iu_outbox_reanchor($1::timestamptz, $2, $3)::text
