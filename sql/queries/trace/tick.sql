-- What there is to export: the tick that is open, else a new one, as JSON.
--
-- $1 text  name of the export

select public.fn_iu_trace_tick($1)::text
