-- The indexes that serve the cursor, and the order of events that are older than it.
--
-- needs: 005
-- locks: ROW EXCLUSIVE for the numbering, SHARE UPDATE EXCLUSIVE for the indexes: writers are not held up
-- transaction: none

-- Events of the worker's domain that were written before 005 are numbered below zero, in order of created_at:
-- the only order that is known of them. Idempotent: a second run finds nothing at 0.
update public.event_outbox e
   set event_seq = o.n
  from (select id, row_number() over (order by created_at, id) - 1 - count(*) over () as n
          from public.event_outbox
         where event_domain = 'iu' and event_seq = 0) o
 where e.id = o.id;

-- "if exists": an interrupted CREATE INDEX CONCURRENTLY leaves an invalid index behind.
drop index concurrently if exists public.event_outbox_tick_idx;
create index concurrently event_outbox_tick_idx
    on public.event_outbox (event_domain, xact_id, event_seq, id);
comment on index public.event_outbox_tick_idx is
    'Serves the tick: events of given transactions, and of all that began after a snapshot.';

drop index concurrently if exists public.event_outbox_order_idx;
create index concurrently event_outbox_order_idx
    on public.event_outbox (event_domain, event_seq, id);
comment on index public.event_outbox_order_idx is
    'Serves paging through a large tick in order, without sorting it for every page.';
