-- Whether a consumer at this site may deliver here; otherwise the reason. The cursor of the worker must be believed as
-- well.
--
-- $1 text  site
-- $2 text  worker

select coalesce((select public.fn_iu_outbox_refusal(c.lineage, c.prev)
                   from public.iu_route_worker_cursor c where c.worker_name = $2),
                public.fn_iu_outbox_admission($1, false))
