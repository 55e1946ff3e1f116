-- Every worker: its position, its totals, and its waiting events.

select c.worker_name, c.event_domain, c.last_created_at, c.last_event_id, c.last_run_at,
       c.total_seen, c.total_attempts, c.total_skipped, c.total_dead_lettered,
       h.healthy, h.condition, h.condition_why, h.backlog, h.backlog_oldest_at as oldest_created_at,
       c.prev::text as prev, c.tick::text as tick, c.pos_seq,
       public.fn_iu_outbox_refusal(c.lineage, c.prev) as refusal, h.open_dead_letters
  from public.iu_route_worker_cursor c
  join public.v_iu_worker_health h on h.worker_name = c.worker_name
 order by c.worker_name
