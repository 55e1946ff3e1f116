-- Consumers that were alive within the last day, and the last consumer of every worker, however old; the youngest
-- heartbeat first. A heartbeat in the future counts as silent: the clock was set back, and a living consumer writes a
-- new heartbeat.

select h.worker_name, h.host, h.pid, h.version, h.state, h.state_detail, h.listening, h.polling_why, h.started_at, h.beat_at,
       h.cadence_seconds, h.last_wake, h.last_wake_at, h.wakes::text as wakes, h.events, h.lag_seconds,
       extract(epoch from clock_timestamp() - h.beat_at)::float8 as silent_seconds,
       h.state <> 'stopped' and abs(extract(epoch from clock_timestamp() - h.beat_at)) > 3 * h.cadence_seconds as silent
  from public.iu_consumer_heartbeat h
 where h.beat_at > now() - interval '1 day'
    or h.consumer_id = (select l.consumer_id
                          from public.iu_consumer_heartbeat l
                         where l.worker_name = h.worker_name
                         order by l.beat_at desc
                         limit 1)
 order by h.beat_at desc
