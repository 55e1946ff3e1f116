-- Whether a route delivers, or has deliveries that wait: fn_iu_delivery_take, without room for any, names each such route.
--
-- $1 text  worker

select exists (select from public.fn_iu_delivery_take($1, '{}', '{}', '{}', '{}', '{}', '{}', '{}', 0))
