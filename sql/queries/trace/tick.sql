-- The rows to export next: the open tick, otherwise a new one, as JSON.
--
-- $1 text  name of the export

select public.fn_iu_trace_tick($1)::text
