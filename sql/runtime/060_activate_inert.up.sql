-- Activates the worker inert: registered, with its gate closed. Nothing runs until an operator opens the gate.
--
-- needs: 008, 009
-- locks: nothing that other sessions use

insert into public.dot_config (key, value, description) values
    ('iu_core.route_worker_enabled', 'false',
     'Worker gate: while it is not ''true'' the route worker reads nothing and decides nothing.');

-- Fresh: no high-water mark, and a position before the first transaction, so no existing event is skipped.
insert into public.iu_route_worker_cursor (worker_name, event_domain, lineage)
select 'iu_outbound_default', 'iu', a.lineage
  from public.iu_outbox_anchor a;
