-- Releases the delivery lease of a worker.
--
-- $1 text  worker
-- $2 uuid  consumer

select public.fn_iu_delivery_release($1, $2)
