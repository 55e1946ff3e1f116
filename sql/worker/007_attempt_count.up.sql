-- How many attempts a decision consists of, on each of them, so that a missing one can be told.
--
-- Routes change, so the routes of today do not say how many attempts an event of last year must have. The decision
-- says it itself: an event that went to three routes has three first attempts, and each of them carries a 3.
--
-- needs: base (iu_route_attempt)
-- locks: ACCESS EXCLUSIVE on iu_route_attempt, for the catalogue change only: no table rewrite, no scan

alter table public.iu_route_attempt
    add column route_count smallint;

comment on column public.iu_route_attempt.route_count is
    'How many first attempts the decision about this event consists of. Null: written before that was counted, or a replay.';
