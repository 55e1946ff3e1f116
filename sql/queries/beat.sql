-- Writes the heartbeat of a consumer for a worker. Rows of killed processes are deleted after a day.
--
-- $1 uuid   consumer           $2 text   worker             $3 text   host        $4 int   pid
-- $5 text   version            $6 text   state              $7 text   why
-- $5 text   version            $6 text   state              $7 text   reason for the state, or null
-- $8 bool   listening          $9 float8 interval of the heartbeat, seconds
-- $10 text  last wake-up       $11 timestamptz  its time    $12 jsonb number of wake-ups by kind
-- $13 int8  events since the start                          $14 text  reason for polling, or null

with stale as (
    delete from public.iu_consumer_heartbeat h
     where h.worker_name = $2 and h.beat_at < now() - interval '1 day')
insert into public.iu_consumer_heartbeat as h
    (consumer_id, worker_name, host, pid, version, state, state_detail, listening, cadence_seconds,
     last_wake, last_wake_at, wakes, events, polling_why, lag_seconds)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12::text::jsonb, $13, $14,
        case when $6 = 'busy' then (select extract(epoch from clock_timestamp() - w.last_created_at)
                                      from public.iu_route_worker_cursor w where w.worker_name = $2) end)
on conflict (consumer_id, worker_name) do update
   set state = excluded.state, state_detail = excluded.state_detail, listening = excluded.listening,
       polling_why = excluded.polling_why, beat_at = clock_timestamp(), last_wake = excluded.last_wake, last_wake_at = excluded.last_wake_at,
       wakes = excluded.wakes, events = excluded.events, lag_seconds = excluded.lag_seconds
