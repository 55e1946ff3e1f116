-- Take the lease of a worker's deliveries: held, again, or the holder, and whether his session is gone.
--
-- $1 text              worker
-- $2 uuid              consumer
-- $3 double precision  how long it lasts when it is not renewed, s
-- $4 boolean           whether the session goes through a pooler
-- $5 uuid              the holder whose session was gone when we asked before, or null

select public.fn_iu_delivery_lease($1, $2, $3, $4, $5)::text
