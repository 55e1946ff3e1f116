-- Records that a batch failed.
--
-- $1 text  worker               $2 int   maximum number of events of the batch
-- $3 text  error                $4 bool  true: it timed out
-- $5 text  event, or null       $6 text  route, or null

select public.fn_iu_route_worker_failed($1, $2, $3, $4, $5::text::uuid, $6)
