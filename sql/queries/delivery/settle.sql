-- Records outcomes of deliveries, and renews the lease. Null: the caller does not have the lease, and nothing was
-- written.
--
-- $1 text                worker
-- $2 uuid                consumer
-- $3 text[]              sent: routes
-- $4 bigint[]            sent: ids
-- $5 uuid[]              sent: events
-- $6 text[]              sent: called targets
-- $7 double precision[]  sent: age of the beginning of the call, seconds
-- $8 double precision[]  sent: age of the end of the call, seconds
-- $9 text[]              not sent: routes
-- $10 bigint[]           not sent: ids
-- $11 uuid[]             not sent: events
-- $12 text[]             not sent: called targets
-- $13 double precision[] not sent: age of the beginning of the call, seconds
-- $14 double precision[] not sent: age of the end of the call, seconds
-- $15 text[]             not sent: results
-- $16 text[]             not sent: failure codes
-- $17 text[]             not sent: descriptions of the failures
-- $18 double precision[] not sent: delay before the next attempt that the target asked for, seconds
-- $19 boolean[]          not sent: whether another delivery of the route succeeded at about the same time

select public.fn_iu_delivery_settle(
           $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)
