-- End deliveries of a route that is held.
--
-- $1 text  route      $2 uuid  event, or null for all      $3 text  why      $4 text  who asks

select public.fn_iu_delivery_cancel($1, $2, $3, coalesce($4, session_user))
