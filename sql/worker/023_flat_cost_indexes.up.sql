-- Indexes for health, for lists of failures and for the completeness check, which must read a bounded number of rows
-- however large the tables are.
--
-- An attempt that did not fail has no entry in its index, so a batch that succeeds pays nothing. Each open dead letter has
-- one more entry; one without an attempt, which is an exception, has two. bench/README.md has the measured costs.
--
-- since: 1.1
-- needs: 008, 014
-- locks: SHARE UPDATE EXCLUSIVE: producers are not blocked
-- transaction: none

-- "if exists": an interrupted CREATE INDEX CONCURRENTLY leaves an invalid index behind.
drop index concurrently if exists public.iu_route_attempt_failed_idx;
create index concurrently iu_route_attempt_failed_idx
    on public.iu_route_attempt (id) where status = 'failed';
comment on index public.iu_route_attempt_failed_idx is
    'Failed attempts, for the list of the newest ones.';

drop index concurrently if exists public.iu_route_dead_letter_worker_idx;
create index concurrently iu_route_dead_letter_worker_idx
    on public.iu_route_dead_letter (worker_name, created_at, id) where resolved_at is null;
comment on index public.iu_route_dead_letter_worker_idx is
    'Open dead letters of a worker by age, for health and metrics.';

drop index concurrently if exists public.iu_route_dead_letter_unwritten_idx;
create index concurrently iu_route_dead_letter_unwritten_idx
    on public.iu_route_dead_letter (event_ref) where attempt_no = 0;
comment on index public.iu_route_dead_letter_unwritten_idx is
    'Dead letters that replace an attempt which could not be written, for the completeness check.';

drop index concurrently if exists public.iu_completeness_missing_open_idx;
create index concurrently iu_completeness_missing_open_idx
    on public.iu_completeness_missing (worker_name, event_ref) where accepted_at is null;
comment on index public.iu_completeness_missing_open_idx is
    'Listed events that are not accepted, for the confirmation, health and metrics.';

drop index concurrently if exists public.iu_completeness_missing_accepted_idx;
create index concurrently iu_completeness_missing_accepted_idx
    on public.iu_completeness_missing (worker_name, event_ref) where accepted_at is not null;
comment on index public.iu_completeness_missing_accepted_idx is
    'Accepted events, for their number.';
