-- Whether a consumer on this host, active or standing by, has written a heartbeat within three intervals. A consumer
-- whose batches fail does not count, because it makes no progress. A heartbeat in the future counts as little as an old
-- one: the clock was set back, and a living consumer writes a new heartbeat.
--
-- $1 text  host     $2 text  worker

select coalesce(bool_or(h.state not in ('stopped', 'failing')
                        and abs(extract(epoch from clock_timestamp() - h.beat_at)) <= 3 * h.cadence_seconds), false)
  from public.iu_consumer_heartbeat h
 where h.host = $1 and h.worker_name = $2
