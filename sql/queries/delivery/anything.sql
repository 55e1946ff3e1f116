-- Whether a route delivers, or has deliveries that wait: whoever takes, without room for any, is told of each such route.
--
-- $1 text  worker

select exists (select from public.fn_iu_delivery_take($1, '{}', '{}', '{}', '{}', '{}', '{}'))
