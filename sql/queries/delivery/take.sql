-- The next deliveries, a row each, and a row for each route.
--
-- $1 text      worker
-- $2 text[]    wanted: routes
-- $3 integer[] room for so many
-- $4 bigint[]  never tried: beyond this id
-- $5 bigint[]  ids that are under way
-- $6 text[]    freed subjects: routes
-- $7 bigint[]  subject keys

select t.route::text as route, t.route_code, t.delivery_id, t.attempt_no, t.subject_key,
       -- the attributes of Event, in their order
       t.event_ref, t.event_domain, t.event_type, t.event_stream, t.subject, t.subject_table, t.source_system, t.actor_ref,
       t.correlation_id, t.occurred_at, t.created_at, t.traceparent, t.payload
  from public.fn_iu_delivery_take($1, $2, $3, $4, $5, $6, $7) t
