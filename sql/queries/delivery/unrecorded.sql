-- Spend an attempt of a delivery whose outcome the database refuses to record, without writing that attempt. Answers how
-- many dead letters that made; null: the consumer has no lease.
--
-- $1 text    worker      $2 uuid  consumer
-- $3 text    route       $4 bigint  id
-- $5 text    failure code      $6 text  the same in words

select public.fn_iu_delivery_unrecorded($1, $2, $3, $4, $5, $6)
