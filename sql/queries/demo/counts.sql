-- The number of events, and the number of those with an attempt.

select (select count(*) from public.event_outbox o where o.event_domain = 'iu') as events,
       (select count(distinct a.event_ref) from public.iu_route_attempt a) as attempted
