-- Settle what came of deliveries, and take the next ones. The second function waits for the first: it needs its answer,
-- which is null where the lease is not ours any more.
--
-- $1 text                worker
-- $2 uuid                consumer
-- $3 text[]              settled: routes
-- $4 bigint[]            ids
-- $5 text[]              results
-- $6 double precision[]  began so many seconds ago
-- $7 double precision[]  ended so many seconds ago
-- $8 text[]              failure codes
-- $9 text[]              failures in words
-- $10 double precision[] not again before so many seconds
-- $11 text[]             wanted: routes
-- $12 integer[]          room for so many
-- $13 bigint[]           never tried: beyond this id
-- $14 bigint[]           ids that are under way
-- $15 text[]             freed subjects: routes
-- $16 bigint[]           subject keys

select s.dead, t.route_code, t.delivery_id, t.attempt_no, t.subject_key, t.traceparent, t.event_ref, t.event_domain,
       t.event_type, t.event_stream, t.subject, t.subject_table, t.source_system, t.actor_ref, t.correlation_id,
       t.occurred_at, t.created_at, t.payload, t.route::text as route
  from public.fn_iu_delivery_settle($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) s(dead)
  left join lateral public.fn_iu_delivery_take(case when s.dead is not null then $1 end, $11, $12, $13, $14, $15, $16) t on true
