-- The indexes of the cursor, and the numbers of events that are older than the cursor.
--
-- needs: 005
-- locks: ROW EXCLUSIVE for the numbering, SHARE UPDATE EXCLUSIVE for the indexes: producers are not blocked
-- transaction: none

-- Events of the worker's domain that were written before 005 get numbers below zero, in the order of created_at, the
-- only order that is known of them. They are sorted once, into a temporary table, and numbered in batches, oldest
-- first. Events that still have 0 after an interruption are younger than the numbered ones, so a second run continues
-- where the first one ended.
drop table if exists pg_temp.iu_numbering;
create temporary table iu_numbering (n bigint primary key, id uuid not null, created_at timestamptz not null);
insert into pg_temp.iu_numbering (n, id, created_at)
select row_number() over (order by o.created_at, o.id) - 1 - count(*) over (), o.id, o.created_at
  from public.event_outbox o
 where o.event_domain = 'iu' and o.event_seq = 0;

-- repeat: numbering events
with batch as (
    delete from pg_temp.iu_numbering b
     where b.n in (select x.n from pg_temp.iu_numbering x order by x.n limit 5000)
    returning b.n, b.id, b.created_at)
update public.event_outbox e
   set event_seq = b.n
  from batch b
 where e.id = b.id and e.created_at = b.created_at and e.event_seq = 0;
drop table pg_temp.iu_numbering;

-- "if exists": an interrupted CREATE INDEX CONCURRENTLY leaves an invalid index behind.
drop index concurrently if exists public.event_outbox_tick_idx;
create index concurrently event_outbox_tick_idx
    on public.event_outbox (event_domain, xact_id, event_seq, id);
comment on index public.event_outbox_tick_idx is
    'Reading a tick: events of given transactions, and of all transactions after a snapshot.';

drop index concurrently if exists public.event_outbox_order_idx;
create index concurrently event_outbox_order_idx
    on public.event_outbox (event_domain, event_seq, id);
comment on index public.event_outbox_order_idx is
    'Paging through a large tick in order, without sorting it for every page.';
