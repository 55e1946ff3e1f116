-- Begins an export from now on; does nothing if it has begun already.
--
-- $1 text  name of the export

select public.fn_iu_trace_register($1)
