-- Whether a consumer on this host has beaten within three cadences, active or standing by; whose batches fail makes no
-- progress. A beat in the future is as
-- little a sign of life as one long past: the clock was set back since, and whoever lives beats again.
--
-- $1 text  host     $2 text  worker

select coalesce(bool_or(h.state not in ('stopped', 'failing')
                        and abs(extract(epoch from clock_timestamp() - h.beat_at)) <= 3 * h.cadence_seconds), false)
  from public.iu_consumer_heartbeat h
 where h.host = $1 and h.worker_name = $2
