-- Whether a consumer at this site may work here; otherwise the reason. A new site is accepted while another consumer
-- delivers.
--
-- $1 text  site
-- $2 text  worker
-- $3 uuid  this consumer

select public.fn_iu_outbox_admission($1, exists (
           select from public.iu_delivery_lease l
             join pg_stat_activity a on a.pid = l.backend and a.backend_start = l.backend_start
            where l.worker_name = $2 and l.owner <> $3 and not l.released))
