create or replace function public.{function}()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as {quote}
declare
    v_type     text := {type};
    v_active   boolean;
    v_stream   text;
    v_lane     text;
    v_severity text;
    v_payload  jsonb;
begin
    -- The name of an event type has other characters only if the table has them.
    if v_type ~ '^[A-Za-z0-9][A-Za-z0-9._-]{{0,99}}$' is not true then
        v_type := left(trim(both '-._' from regexp_replace(coalesce(v_type, ''), '[^A-Za-z0-9._-]+', '-', 'g')), 100);
        v_type := coalesce(nullif(v_type, ''), 'untyped');
    end if;
    select r.active, r.event_stream, r.delivery_lane, r.default_severity
      into v_active, v_stream, v_lane, v_severity
      from public.event_type_registry r
     where r.event_domain = {domain} and r.event_type = v_type;
    if not v_active then
        return null;
    end if;
    if not found then
        insert into public.event_type_registry as r (event_domain, event_type)
        values ({domain}, v_type)
        on conflict (event_domain, event_type) do update set active = r.active
        returning r.event_stream, r.delivery_lane, r.default_severity into v_stream, v_lane, v_severity;
    end if;
{payload}
    insert into public.event_outbox
           ({columns})
    values ({values})
    on conflict do nothing;
    return null;
end
{quote};
comment on function public.{function}() is {comment};
revoke execute on function public.{function}() from public;

create trigger {trigger} after insert on {table} for each row
    execute function public.{function}();
