-- Takes or renews the delivery lease of a worker. Answers whether it is held and was held before; otherwise the holder,
-- and whether the holder's session has ended.
--
-- $1 text              worker
-- $2 uuid              consumer
-- $3 double precision  seconds after which the lease expires if it is not renewed
-- $4 boolean           whether the session goes through a pooler
-- $5 uuid              holder without a session at the previous call, or null

select public.fn_iu_delivery_lease($1, $2, $3, $4, $5)::text
