-- Settle what came of deliveries, and take the next ones. The second function waits for the first: it needs its answer,
-- which is null where the lease is not ours any more.
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
-- $15 text[]             wanted: routes
-- $16 integer[]          room for so many
-- $17 bigint[]           never tried: beyond this id
-- $18 bigint[]           ids that are under way
-- $19 text[]             freed subjects: routes
-- $20 bigint[]           subject keys

select s.dead, t.route::text as route, t.route_code, t.delivery_id, t.attempt_no, t.subject_key,
       -- the attributes of Event, in their order
       t.event_ref, t.event_domain, t.event_type, t.event_stream, t.subject, t.subject_table, t.source_system, t.actor_ref,
       t.correlation_id, t.occurred_at, t.created_at, t.traceparent, t.payload
  from public.fn_iu_delivery_settle($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) s(dead)
  left join lateral public.fn_iu_delivery_take(case when s.dead is not null then $1 end, $15, $16, $17, $18, $19, $20) t on true
