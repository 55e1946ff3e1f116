-- Indexes for readers of attempts and dead letters: by transaction, for the rows after a snapshot; and dead letters by
-- age, and the open ones by route and failure code.
--
-- Transactions and ids of attempts grow with time, so each insert goes to the last page of its index. The cost for a
-- batch is small; bench/drain.py measures it.
--
-- needs: 007, 008
-- locks: SHARE UPDATE EXCLUSIVE: producers are not blocked
-- transaction: none

-- "if exists": an interrupted CREATE INDEX CONCURRENTLY leaves an invalid index behind.
drop index concurrently if exists public.iu_route_attempt_tick_idx;
create index concurrently iu_route_attempt_tick_idx
    on public.iu_route_attempt (xact_id, id);
comment on index public.iu_route_attempt_tick_idx is
    'For readers of attempts: attempts of given transactions, and of all transactions after a snapshot.';

drop index concurrently if exists public.iu_route_dead_letter_tick_idx;
create index concurrently iu_route_dead_letter_tick_idx
    on public.iu_route_dead_letter (xact_id, id);
comment on index public.iu_route_dead_letter_tick_idx is
    'For readers of dead letters: dead letters of given transactions, and of all transactions after a snapshot.';

-- Commands list dead letters by age and count the open ones by kind. Without these indexes they would read every
-- resolved dead letter.
drop index concurrently if exists public.iu_route_dead_letter_open_idx;
create index concurrently iu_route_dead_letter_open_idx
    on public.iu_route_dead_letter (created_at, id) where resolved_at is null;
comment on index public.iu_route_dead_letter_open_idx is
    'Open dead letters by age, for lists and for replays in order.';

drop index concurrently if exists public.iu_route_dead_letter_kind_idx;
create index concurrently iu_route_dead_letter_kind_idx
    on public.iu_route_dead_letter (route_code, failure_code, created_at, id) where resolved_at is null;
comment on index public.iu_route_dead_letter_kind_idx is
    'Open dead letters by route and failure code, for counts and filters.';

drop index concurrently if exists public.iu_route_dead_letter_age_idx;
create index concurrently iu_route_dead_letter_age_idx
    on public.iu_route_dead_letter (created_at, id);
comment on index public.iu_route_dead_letter_age_idx is 'All dead letters by age, including the resolved ones.';
