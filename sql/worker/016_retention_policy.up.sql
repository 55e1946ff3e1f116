-- The policies of retention (functions/retention). Every policy is disabled until an operator enables it.
--
-- needs: nothing
-- locks: nothing that other sessions use

-- A table instead of keys in dot_config: an interval that PostgreSQL has parsed is always valid, and the right to set a
-- policy does not include the right to change other settings.
create table public.iu_retention_policy (
    what         text         not null,
    keep         interval     not null,
    enabled      boolean      not null default false,
    updated_at   timestamptz  not null default now(),
    last_run_at  timestamptz,
    last_gone    bigint,
    total_gone   bigint       not null default 0,

    constraint iu_retention_policy_pkey primary key (what),
    constraint iu_retention_policy_what_chk check (what in ('events', 'attempts', 'dead_letters')),
    constraint iu_retention_policy_keep_positive check (keep > '0')
);
comment on table public.iu_retention_policy is
    'The retention policies, one row each. Nothing is deleted by a policy that is not enabled.';
comment on column public.iu_retention_policy.what is
    'The rows that the policy deletes: events, attempts or dead_letters.';
comment on column public.iu_retention_policy.keep is
    'Minimum age of a row before it is deleted. Older rows are deleted unless a cursor, an audit or an export still '
    'needs them.';
comment on column public.iu_retention_policy.enabled is
    'True: a run deletes rows by this policy. False: it skips them.';
comment on column public.iu_retention_policy.updated_at is 'Time at which the policy was last set.';
comment on column public.iu_retention_policy.last_run_at is
    'Time of the last run by this policy, even if it deleted nothing. Null: there was none.';
comment on column public.iu_retention_policy.last_gone is 'Rows that the last run deleted. Null: there was no run.';
comment on column public.iu_retention_policy.total_gone is 'Rows that all runs have deleted.';
comment on constraint iu_retention_policy_pkey on public.iu_retention_policy is 'Each kind of rows has one policy.';
comment on constraint iu_retention_policy_what_chk on public.iu_retention_policy is
    'The kinds of rows that have a policy.';
comment on constraint iu_retention_policy_keep_positive on public.iu_retention_policy is
    'Rows must be kept for some time.';

insert into public.iu_retention_policy (what, keep) values
    ('events', '90 days'), ('attempts', '400 days'), ('dead_letters', '400 days');
