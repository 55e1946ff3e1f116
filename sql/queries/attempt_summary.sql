-- The number of attempts by route and status, among the newest attempts.
--
-- $1 int  number of the newest attempts that are counted; null: all

select a.route_kind, a.route_code, a.status, count(*) as attempts, max(a.created_at) as last_at
  from (select x.route_kind, x.route_code, x.status, x.created_at
          from public.iu_route_attempt x
         order by x.id desc
         limit $1) a
 group by a.route_kind, a.route_code, a.status
 order by a.route_kind, a.route_code, a.status
