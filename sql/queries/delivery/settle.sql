-- Settle what came of deliveries, and renew the lease. Null: it is not ours any more, and nothing was written.
--
-- $1 text                worker
-- $2 uuid                consumer
-- $3 text[]              arrived: routes
-- $4 bigint[]            ids
-- $5 double precision[]  began so many seconds ago
-- $6 double precision[]  ended so many seconds ago
-- $7 text[]              did not arrive: routes
-- $8 bigint[]            ids
-- $9 text[]              results
-- $10 double precision[] began so many seconds ago
-- $11 double precision[] ended so many seconds ago
-- $12 text[]             failure codes
-- $13 text[]             failures in words
-- $14 double precision[] not again before so many seconds
-- $15 boolean[]          whether another delivery of the route succeeded beside it
-- $16 text[]             arrived: what was called
-- $17 text[]             did not arrive: what was called
-- $18 uuid[]             arrived: events
-- $19 uuid[]             did not arrive: events

select public.fn_iu_delivery_settle(
           $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)
