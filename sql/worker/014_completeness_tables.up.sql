-- The tables of the completeness check (functions/completeness): its position, and the events that lack attempts.
--
-- needs: nothing
-- locks: nothing that other sessions use

create table public.iu_completeness_pass (
    worker_name   text         not null,
    pass          bigint       not null default 0,
    started_at    timestamptz,
    pos_seq       bigint,
    pos_id        uuid,
    from_seq      bigint,
    until_seq     bigint,
    walked        boolean      not null default false,
    checked       bigint       not null default 0,
    suspects      bigint       not null default 0,
    missing       bigint       not null default 0,
    near          bigint       not null default 0,
    width         bigint       not null default 0,
    codes         text[]       not null default '{}',
    paged_at      timestamptz,
    finished_at   timestamptz,
    last_checked  bigint,
    last_seconds  double precision,

    constraint iu_completeness_pass_pkey primary key (worker_name),
    constraint iu_completeness_pass_pos_chk check ((pos_seq is null) = (pos_id is null) and (started_at is not null or pos_seq is null))
)
-- Every page updates the row; free space in the block keeps those updates HOT.
with (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

comment on table public.iu_completeness_pass is
    'The completeness check of each worker: the running pass, and the last one that ended.';
comment on column public.iu_completeness_pass.worker_name is 'Name of the worker.';
comment on column public.iu_completeness_pass.pass is 'Number of the running pass, otherwise of the last one.';
comment on column public.iu_completeness_pass.started_at is 'Time at which the running pass began. Null: none is running.';
comment on column public.iu_completeness_pass.pos_seq is
    'event_seq of the last event that the running pass has checked. Null: none yet.';
comment on column public.iu_completeness_pass.pos_id is 'Id of the last event that the running pass has checked. Null: none yet.';
comment on column public.iu_completeness_pass.from_seq is 'Lowest event_seq at the beginning of the running pass.';
comment on column public.iu_completeness_pass.until_seq is
    'Highest event_seq at the beginning of the running pass; the pass ends there.';
comment on column public.iu_completeness_pass.walked is
    'True: the running pass has checked every event, and only has to confirm the suspected ones.';
comment on column public.iu_completeness_pass.checked is 'Events before the cursor that the running pass has checked.';
comment on column public.iu_completeness_pass.suspects is 'Events that were found to lack attempts since the last confirmation.';
comment on column public.iu_completeness_pass.missing is
    'Incomplete events at the last confirmation, without those that were accepted.';
comment on column public.iu_completeness_pass.near is
    'Block of iu_route_attempt near which the attempts of the next page are expected.';
comment on column public.iu_completeness_pass.width is
    'Number of blocks over which the attempts of 1 000 events are spread near that block.';
comment on column public.iu_completeness_pass.codes is
    'Every route code that a pass has met, including deleted routes. Attempts are found by keys made of these codes.';
comment on column public.iu_completeness_pass.paged_at is 'Time at which the last page was checked. Null: none ever was.';
comment on column public.iu_completeness_pass.finished_at is 'Time at which the last pass ended. Null: none ever did.';
comment on column public.iu_completeness_pass.last_checked is 'Events that the last ended pass checked. Null: no pass has ended.';
comment on column public.iu_completeness_pass.last_seconds is
    'Duration of the last ended pass in seconds, with its pauses. Null: no pass has ended.';
comment on constraint iu_completeness_pass_pkey on public.iu_completeness_pass is 'A worker has one completeness check.';
comment on constraint iu_completeness_pass_pos_chk on public.iu_completeness_pass is 'A position exists only in a running pass.';

create table public.iu_completeness_missing (
    worker_name   text         not null,
    event_ref     uuid         not null,
    found         bigint,
    wanted        bigint,
    found_at      timestamptz  not null default now(),
    confirmed_at  timestamptz,
    restamped_at  timestamptz,
    accepted_at   timestamptz,

    constraint iu_completeness_missing_pkey primary key (worker_name, event_ref)
);

comment on table public.iu_completeness_missing is
    'Events before the cursor of a worker that lack attempts. A row is deleted when its event is complete, or is no '
    'longer in the outbox.';
comment on column public.iu_completeness_missing.worker_name is 'Name of the worker.';
comment on column public.iu_completeness_missing.event_ref is
    'Id of the event. Without a foreign key, because retention may delete the event.';
comment on column public.iu_completeness_missing.found is 'First attempts that the event has. Null: not confirmed yet.';
comment on column public.iu_completeness_missing.wanted is
    'First attempts that the event should have. Null: not confirmed yet.';
comment on column public.iu_completeness_missing.found_at is 'Time at which a pass first suspected the event.';
comment on column public.iu_completeness_missing.confirmed_at is
    'Time of the last confirmation. Null: the event is only suspected.';
comment on column public.iu_completeness_missing.restamped_at is
    'Time at which the event got a new position after the cursor, to be decided again. Null: never, or it was '
    'confirmed again since.';
comment on column public.iu_completeness_missing.accepted_at is
    'Time at which the incomplete event was accepted: it is still listed, and raises no alarm. Null: it is not '
    'accepted.';
comment on constraint iu_completeness_missing_pkey on public.iu_completeness_missing is 'A worker lists an event once.';
