-- A cursor of the probe's own, starting now: it sees what this transaction writes, and nothing else.
--
-- $1 text  worker

insert into public.iu_route_worker_cursor (worker_name, event_domain, lineage, prev)
select $1, 'iu', a.lineage, public.fn_iu_outbox_tick()
  from public.iu_outbox_anchor a
returning prev::text
