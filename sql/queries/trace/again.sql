-- The range of a repeated export, as JSON.
--
-- $1 timestamptz  beginning

select public.fn_iu_trace_again($1)::text
