-- Whether there is a route that delivers or has pending deliveries: fn_iu_delivery_take without capacity names each
-- such route.
--
-- $1 text  worker

select exists (select from public.fn_iu_delivery_take($1, '{}', '{}', '{}', '{}', '{}', '{}', '{}', 0))
