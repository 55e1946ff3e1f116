-- The ledger: the files of this package that are applied to this database, with their texts and versions.
--
-- needs: nothing
-- locks: nothing that other sessions use

create table public.iu_migration (
    name            text         not null,
    checksum        text         not null,
    schema_version  text         not null,
    applied_at      timestamptz  not null default now(),
    applied_by      text         not null default session_user,
    duration_ms     integer      not null default 0,
    evidence        jsonb        not null default '{}',

    constraint iu_migration_pkey primary key (name),
    constraint iu_migration_checksum_chk check (checksum ~ '^[0-9a-f]{64}$'),
    constraint iu_migration_schema_version_chk check (schema_version ~ '^[0-9]{1,6}[.][0-9]{1,6}$')
);
comment on table public.iu_migration is 'The files of iu-listen that are applied to this database.';
comment on column public.iu_migration.name is 'Folder and name of the file, without .up.sql.';
comment on column public.iu_migration.checksum is
    'SHA-256 of the applied .up.sql. A versioned file must not be edited afterwards; a repeatable file is applied '
    'again.';
comment on column public.iu_migration.schema_version is
    'Version, as major.minor, of the SQL package from which the file was last applied. The schema version of the '
    'database is the highest of them.';
comment on column public.iu_migration.applied_at is 'Time at which the file was last applied.';
comment on column public.iu_migration.applied_by is 'Role that last applied the file.';
comment on column public.iu_migration.duration_ms is 'Duration of the application in milliseconds.';
comment on column public.iu_migration.evidence is
    'Results of the preflight checks when the file was applied, including the backup.';
comment on constraint iu_migration_pkey on public.iu_migration is 'A file has one row.';
comment on constraint iu_migration_checksum_chk on public.iu_migration is 'A checksum is SHA-256 in hexadecimal.';
comment on constraint iu_migration_schema_version_chk on public.iu_migration is
    'A schema version is two numbers: major.minor.';
