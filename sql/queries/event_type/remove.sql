-- Removes an event type, so that no further event of it can be written. Events that exist are not affected.
--
-- $1 text  domain     $2 text  type

delete from public.event_type_registry t where t.event_domain = $1 and t.event_type = $2
returning t.event_type
