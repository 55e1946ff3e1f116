-- Event ids that ascend in time, on the neutral base: UUIDs of version 7 (RFC 9562) instead of random ones.
--
-- The audit has a unique index of the idempotency keys, and a key ends with the id of its event. Random keys touch a page
-- of their own each, so with a million attempts an event wrote 2.3 kB of WAL instead of 0.7 kB, and with three millions
-- 4.1 kB (docs/why/event-ids.md). Ids that the application gives are not changed, and neither is the base of IU Core.
--
-- since: 1.1
-- needs: base
-- locks: ACCESS EXCLUSIVE on event_outbox, for the catalogue change only, and only if it is available within lock_timeout

-- An expression and no function, so that no producer needs a further privilege. PostgreSQL 18 has a function for it.
-- Without the lock the ids stay random, which costs only WAL.
do $$
begin
    if to_regclass('public.information_unit') is not null then
        return;
    end if;
    begin
        lock table public.event_outbox in access exclusive mode;
    exception when lock_not_available then
        return;
    end;
    if current_setting('server_version_num')::integer >= 180000 then
        alter table public.event_outbox alter column id set default uuidv7();
    else
        -- 12 hexadecimal digits of time in milliseconds, the version, and the random rest of a UUID of version 4.
        alter table public.event_outbox
            alter column id set default
                (lpad(to_hex(floor(extract(epoch from clock_timestamp()) * 1000)::bigint), 12, '0') || '7'
                 || substr(replace(gen_random_uuid()::text, '-', ''), 14))::uuid;
    end if;
end
$$;
