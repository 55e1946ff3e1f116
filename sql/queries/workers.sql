-- Every worker: where it is, what it did, what waits.

select c.worker_name, c.event_domain, c.last_created_at, c.last_event_id, c.last_run_at,
       c.total_seen, c.total_attempts, c.total_skipped, c.total_dead_lettered,
       b.backlog, b.oldest_created_at,
       c.prev::text as prev, c.tick::text as tick, c.pos_seq,
       public.fn_iu_outbox_refusal(c.lineage, c.prev) as refusal,
       (select count(*) from public.iu_route_dead_letter d
         where d.worker_name = c.worker_name and d.resolved_at is null) as open_dead_letters
  from public.iu_route_worker_cursor c
  join public.v_iu_event_backlog b on b.worker_name = c.worker_name
 order by c.worker_name
