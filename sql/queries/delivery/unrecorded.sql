-- Spends an attempt that the database refuses to store, without storing it. Answers the number of dead letters that this
-- made; null: the consumer does not have the lease.
--
-- $1 text    worker            $2 uuid    consumer
-- $3 text    route             $4 bigint  id
-- $5 text    failure code      $6 text    description of the failure

select public.fn_iu_delivery_unrecorded($1, $2, $3, $4, $5, $6)
