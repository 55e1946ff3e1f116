-- The registered event types, each with the number of its routes.
--
-- $1 text  domain, or null for all

select t.event_domain, t.event_type, t.event_stream, t.delivery_lane, t.default_severity, t.active,
       (select count(*) from public.iu_outbound_route r
         where r.event_domain = t.event_domain and r.event_type = t.event_type) as routes
  from public.event_type_registry t
 where $1::text is null or t.event_domain = $1
 order by t.event_domain, t.event_type
