-- End an export for good. Its reader must be gone. The number of spans that it had sent; no row: there is none.
--
-- $1 text  name of the export

delete from public.iu_trace_cursor t where t.name = $1 returning t.exported
