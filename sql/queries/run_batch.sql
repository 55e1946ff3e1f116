-- Routes the next page of events.
--
-- $1 text  worker
-- $2 int   maximum number of events

select public.fn_iu_route_worker_run($1, $2)::text
