-- Ends an export for good. Its reader must have ended. Answers the number of exported spans; no row: there is no such
-- export.
--
-- $1 text  name of the export

delete from public.iu_trace_cursor t where t.name = $1 returning t.exported
