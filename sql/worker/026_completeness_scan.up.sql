-- The position of a confirmation of the completeness check, which reads the attempts in parts, and the attempts that it
-- has found (functions/completeness).
--
-- since: 1.1
-- needs: 014
-- locks: ACCESS EXCLUSIVE on the two tables of the completeness check, for the catalogue change only

alter table public.iu_completeness_pass
    add column scan_id       bigint,
    add column scan_until    bigint,
    add column scan_ref      uuid,
    add column scan_missing  bigint;
comment on column public.iu_completeness_pass.scan_id is
    'Id of the last attempt that the running confirmation has read. Null: none is running.';
comment on column public.iu_completeness_pass.scan_until is
    'Highest id of an attempt at the beginning of the running confirmation, which reads the attempts up to it.';
comment on column public.iu_completeness_pass.scan_ref is
    'Id of the last listed event that the running confirmation has judged. Null: it still reads attempts.';
comment on column public.iu_completeness_pass.scan_missing is
    'Incomplete events that the running confirmation has found, without those that were accepted.';

alter table public.iu_completeness_missing add column seen bigint[] not null default '{}';
comment on column public.iu_completeness_missing.seen is
    'Ids of first attempts of the event that a confirmation has read. Other attempts are found by the keys of known routes.';
