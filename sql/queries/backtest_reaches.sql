-- Whether the newest events of a route's domain reach back to the beginning of a period.
--
-- $1 text  route     $2 timestamptz  beginning of the period     $3 bigint  number of the newest events

select coalesce((select o.created_at < $2
                   from public.iu_outbound_route r
                  cross join lateral (
                        select x.event_seq, x.id
                          from public.event_outbox x
                         where x.event_domain = r.event_domain
                         order by x.event_seq desc, x.id desc
                        offset $3::bigint
                         limit 1) last
                  cross join lateral (select e.created_at from public.event_outbox e where e.id = last.id limit 1) o
                  where r.route_code = $1), true)
