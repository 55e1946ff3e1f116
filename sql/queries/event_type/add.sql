-- Registers an event type, or activates it again. No row: it is registered with another stream or lane.
--
-- $1 text  domain     $2 text  type     $3 text  stream     $4 text  lane     $5 text  default severity

insert into public.event_type_registry as t (event_domain, event_type, event_stream, delivery_lane, default_severity)
values ($1, $2, $3, $4, $5)
on conflict (event_domain, event_type) do update set active = true
 where t.event_stream = excluded.event_stream and t.delivery_lane = excluded.delivery_lane
returning t.event_type
