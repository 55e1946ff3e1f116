-- The indexes that serve readers of the audit: attempts and dead letters of given transactions, and of all that began
-- after a snapshot.
--
-- Transactions and ids of attempts grow with time, so an insert goes to its last page: a batch pays little for it, and bench/drain.py says
-- how little.
--
-- needs: 007, 008
-- locks: SHARE UPDATE EXCLUSIVE: writers are not held up
-- transaction: none

-- "if exists": an interrupted CREATE INDEX CONCURRENTLY leaves an invalid index behind.
drop index concurrently if exists public.iu_route_attempt_tick_idx;
create index concurrently iu_route_attempt_tick_idx
    on public.iu_route_attempt (xact_id, id);
comment on index public.iu_route_attempt_tick_idx is
    'Serves readers of the audit: attempts of given transactions, and of all that began after a snapshot.';

drop index concurrently if exists public.iu_route_dead_letter_tick_idx;
create index concurrently iu_route_dead_letter_tick_idx
    on public.iu_route_dead_letter (xact_id, id);
comment on index public.iu_route_dead_letter_tick_idx is
    'Serves readers of the audit: dead letters of given transactions, and of all that began after a snapshot.';
