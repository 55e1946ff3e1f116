-- The delivery of an event that was called ahead and that its batch has not handed over.
--
-- $1 text  worker
-- $2 uuid  consumer
-- $3 text  route
-- $4 uuid  event
-- $5 bool  whether the call has succeeded

select t.delivery_id as id, t.attempt_no as attempt, t.subject_key, t.alone
  from public.fn_iu_delivery_of_call($1, $2, $3, $4, $5) t
