-- Note that a batch failed.
--
-- $1 text  worker               $2 int   how many events it was to take at most
-- $3 text  the error            $4 bool  it ran out of time
-- $5 text  the event, or null   $6 text  the route, or null

select public.fn_iu_route_worker_failed($1, $2, $3, $4, $5::text::uuid, $6)
