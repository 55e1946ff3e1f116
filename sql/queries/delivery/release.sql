-- Give the lease of a worker's deliveries back.
--
-- $1 text  worker
-- $2 uuid  consumer

select public.fn_iu_delivery_release($1, $2)
