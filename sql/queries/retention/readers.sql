-- The position of every cursor, to find the reader that holds rows back.

select c.worker_name, c.event_domain, c.last_created_at, c.last_run_at, c.prev::text as prev,
       public.fn_iu_outbox_refusal(c.lineage, c.prev) as refusal
  from public.iu_route_worker_cursor c
 order by c.worker_name
