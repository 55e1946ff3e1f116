-- Where an export that is repeated begins and ends, as JSON.
--
-- $1 timestamptz  since when

select public.fn_iu_trace_again($1)::text
