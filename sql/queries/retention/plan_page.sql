-- The plan for the oldest rows of each policy, in the order of a run: as fn_iu_retention_plan, which judges all rows.
-- The verdict not_judged stands for the rest, if there are more rows that may be old enough.
--
-- The first row that is younger than the policy ends the page of events and that of attempts, as in a run. Dead letters
-- are read by created_at: one that was resolved later is still young, and is not counted.
--
-- $1 text  interval that overrides the policies; null: none     $2 text[]  policies; null: all
-- $3 int   number of rows of each policy (of events: in each domain) that are judged

with policy as materialized (
    select p.what, least((now() at time zone 'UTC' - coalesce($1::text::interval, p.keep)) at time zone 'UTC', now()) as cutoff
      from public.iu_retention_policy p
     where p.what = any ($2::text[]) or $2::text[] is null
), domain as materialized (
    select d.event_domain, d.cursors, d.refusing from public.fn_iu_retention_domains() d
), audit as materialized (
    select p.what, p.cutoff, (select string_agg(d.refusing, ', ' order by d.event_domain) from domain d) as refusing
      from policy p
     where p.what <> 'events'
), judged (what, n, verdict, who, at) as (
    select p.what, o.n, v.verdict, v.who, o.created_at
      from policy p
     cross join domain d
     cross join lateral (
           select x.created_at, x.xact_id, x.event_seq, x.id, row_number() over w as n,
                  bool_or(x.created_at between p.cutoff and now()) over w as young
             from (select e.created_at, e.xact_id, e.event_seq, e.id
                     from public.event_outbox e
                    where e.event_domain = d.event_domain
                    order by e.event_seq, e.id
                    limit $3::int + 1) x
           window w as (order by x.event_seq, x.id)) o
     cross join lateral public.fn_iu_retention_event_verdict(
           d.refusing, d.cursors, p.cutoff, o.created_at, o.xact_id, o.event_seq, o.id) v
     where p.what = 'events' and not o.young
    union all
    select p.what, a.n, v.verdict, p.refusing, a.created_at
      from audit p
     cross join lateral (
           select x.created_at, x.event_ref, x.route_code, x.idempotency_key, row_number() over w as n,
                  bool_or(x.created_at between p.cutoff and now()) over w as young
             from (select t.id, t.created_at, t.event_ref, t.route_code, t.idempotency_key
                     from public.iu_route_attempt t
                    order by t.id
                    limit $3::int + 1) x
           window w as (order by x.id)) a
     cross join lateral public.fn_iu_retention_attempt_verdict(p.refusing, a.event_ref, a.idempotency_key) v
     where p.what = 'attempts' and not a.young and a.created_at < p.cutoff
       and a.idempotency_key = public.fn_iu_idempotency_key(a.route_code, a.event_ref)
    union all
    select p.what, l.n, v.verdict, p.refusing, coalesce(l.resolved_at, l.created_at)
      from audit p
     cross join lateral (
           select x.created_at, x.event_ref, x.attempt_no, x.resolved_at, row_number() over (order by x.created_at, x.id) as n
             from (select t.id, t.created_at, t.event_ref, t.attempt_no, t.resolved_at
                     from public.iu_route_dead_letter t
                    where t.created_at < p.cutoff
                    order by t.created_at, t.id
                    limit $3::int + 1) x) l
     cross join lateral public.fn_iu_retention_dead_letter_verdict(
           p.refusing, l.event_ref, l.attempt_no, l.resolved_at) v
     where p.what = 'dead_letters' and (coalesce(l.resolved_at, l.created_at) < p.cutoff or l.n > $3::int)
)
select j.what, g.verdict, g.who, count(*) as count, min(j.at) as oldest, max(j.at) as youngest
  from judged j
 cross join lateral (
       select case when j.n > $3::int then 'not_judged' else j.verdict end as verdict,
              case when j.n <= $3::int then j.who end as who) g
 group by j.what, g.verdict, g.who
 order by array_position(array['events', 'attempts', 'dead_letters'], j.what), g.verdict <> 'goes', g.verdict, g.who
