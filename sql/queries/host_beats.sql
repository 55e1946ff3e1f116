-- Whether a consumer on this host has beaten within three cadences, active or standing by.
--
-- $1 text  host     $2 text  worker

select coalesce(bool_or(h.state not in ('stopped')
                        and clock_timestamp() - h.beat_at <= 3 * h.cadence_seconds * interval '1 second'), false)
  from public.iu_consumer_heartbeat h
 where h.host = $1 and h.worker_name = $2
