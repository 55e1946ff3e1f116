-- Records the deliveries that are about to be in flight. False: the consumer does not have the lease.
--
-- $1 text      worker
-- $2 uuid      consumer
-- $3 text[]    routes
-- $4 bigint[]  ids

select public.fn_iu_delivery_record_in_flight($1, $2, $3, $4)
