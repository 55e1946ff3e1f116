-- Monitoring: the health of every worker, the holders of leases, and the blockers.
--
-- kind: repeatable
-- needs: 008, 009, 017
-- locks: nothing that other sessions use

-- Health -------------------------------------------------------------------------------------------------
create or replace view public.v_iu_worker_health as
select c.worker_name, (h.j ->> 'healthy')::boolean as healthy, h.j ->> 'condition' as condition,
       h.j ->> 'condition_why' as condition_why, h.j ->> 'state' as state,
       (h.j ->> 'last_beat_at')::timestamptz as last_beat_at, c.last_run_at,
       (h.j ->> 'silent_seconds')::double precision as silent_seconds, (h.j ->> 'standbys')::bigint as standbys,
       (h.j ->> 'backlog')::bigint as backlog, (h.j ->> 'backlog_oldest_at')::timestamptz as backlog_oldest_at,
       (h.j ->> 'open_dead_letters')::bigint as open_dead_letters,
       h.j -> 'reasons' as reasons, h.j -> 'warnings' as warnings
  from public.iu_route_worker_cursor c
-- "offset 0": called once for each worker, not once for each column.
 cross join lateral (select public.fn_iu_route_worker_health(c.worker_name) as j offset 0) h;
comment on view public.v_iu_worker_health is
    'The health of every worker: the answer of fn_iu_route_worker_health, in columns.';

-- Leases -------------------------------------------------------------------------------------------------

-- Any role that may connect can take an advisory lock, and a session can choose any application_name. It cannot choose
-- its role: the lock of a role that has no rights for the work of this lease does not count as a lease.
create or replace function public.fn_iu_lease_holders(p_key integer, p_name text)
returns table (pid integer, unauthorized boolean, description text)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    select a.pid, r.unauthorized,
           format('pid %s, %s%s%s', a.pid, coalesce(nullif(a.application_name, ''), 'unnamed'),
                  coalesce(', from ' || host(a.client_addr), ''),
                  case when r.unauthorized
                       then ', of role ' || coalesce(a.usename, '?') || ', which has no right to do this work' end)
      from pg_catalog.pg_locks l
      join pg_catalog.pg_stat_activity a on a.pid = l.pid
     cross join lateral (
           select (has_column_privilege(a.usesysid, to_regclass('public.iu_route_worker_cursor'), 'prev', 'UPDATE')
                   or has_column_privilege(a.usesysid, to_regclass('public.iu_trace_cursor'), 'prev', 'UPDATE')
                   or has_table_privilege(a.usesysid, to_regclass('public.event_outbox'), 'DELETE')) is not true) r(unauthorized)
     where l.locktype = 'advisory' and l.granted and l.objsubid = 2
       and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
       and l.classid::bigint = p_key and l.objid = (hashtext(p_name)::bigint & 4294967295)::oid
$$;
comment on function public.fn_iu_lease_holders(integer, text) is
    'The sessions that hold the advisory lock (p_key, hash of p_name), and whether the role of each is unauthorized: '
    'it has no rights for the work of this lease.';

-- Blockers -----------------------------------------------------------------------------------------------
--
-- Sessions and objects that delay or threaten a consumer. The thresholds are chosen so that a row deserves an
-- operator's attention:
--
--   late_event       a transaction that may have written events and is open for 10 s: they are routed when it commits
--   vacuum           holds back vacuum in the whole cluster for five minutes; the worst one of each kind
--   notify_queue     from one tenth on: the oldest session in a transaction, or one that does not read the data sent to
--                    it; PostgreSQL does not tell which sessions listen, so it is suspected and not proved
--   lease, bell_key  an advisory lock of the package that is held by another program, or by a role without its rights
--   trigger          a trigger of the package that is missing, disabled, or not fired always
--
-- A role without pg_read_all_stats sees the pid and the application of other roles' sessions, but neither state nor
-- age.
create or replace view public.v_iu_blocker as
with here as (
    select d.oid from pg_catalog.pg_database d where d.datname = current_database()),
sessions as (
    select a.pid, a.application_name, a.datname, a.usename, a.usesysid, a.state, a.wait_event, a.backend_xid, a.backend_xmin,
           a.xact_start, a.backend_type,
           extract(epoch from clock_timestamp() - a.xact_start)::double precision as seconds
      from pg_catalog.pg_stat_activity a
     where a.pid <> pg_backend_pid()),
writing as (
    select l.pid, l.virtualtransaction
      from pg_catalog.pg_locks l
     where l.locktype = 'relation' and l.mode = 'RowExclusiveLock' and l.granted
       and l.database = (select h.oid from here h) and l.relation = to_regclass('public.event_outbox')),
prepared as (
    select p.gid, p.owner, p.database, p.transaction,
           extract(epoch from clock_timestamp() - p.prepared)::double precision as seconds,
           exists (select from pg_catalog.pg_locks l
                     join writing w on w.virtualtransaction = l.virtualtransaction
                    where l.pid is null and l.locktype = 'transactionid' and l.transactionid = p.transaction) as writes
      from pg_catalog.pg_prepared_xacts p),
ours as (
    select l.classid::bigint as key, l.objid::bigint as slot, l.mode, s.*,
           has_column_privilege(s.usesysid, 'public.iu_route_worker_cursor', 'prev', 'UPDATE') is not true as stranger
      from pg_catalog.pg_locks l
      join sessions s on s.pid = l.pid
     where l.locktype = 'advisory' and l.granted and l.objsubid = 2 and l.database = (select h.oid from here h)
       -- Producers hold 726001 shared while they commit; that belongs to the protocol of the bell.
       and (l.classid::bigint in (726002, 726003) or l.classid::bigint = 726001 and l.mode = 'ExclusiveLock')),
horizon as (
    select 'session' as kind, s.pid, null::text as name, s.application_name, s.datname::text as datname, s.state,
           s.seconds, age(s.backend_xmin)::bigint as xids
      from sessions s
     where s.backend_xmin is not null and coalesce(s.seconds, 0) > 300
    union all
    select 'prepared transaction', null, p.gid, null, p.database::text, 'prepared', p.seconds, age(p.transaction)::bigint
      from prepared p
     where p.seconds > 300
    union all
    select 'replication slot', r.active_pid, r.slot_name::text, null, r.database::text,
           case when r.active then 'active' else 'inactive' end, null,
           greatest(age(r.xmin), age(r.catalog_xmin))::bigint
      from pg_catalog.pg_replication_slots r
     where greatest(age(r.xmin), age(r.catalog_xmin)) > 100000)
select 'late_event' as what, 'pid ' || s.pid as who, s.pid, s.application_name::text as application,
       s.datname::text as database, s.state::text as state, s.seconds, null::bigint as xids,
       'its events are routed when it commits; nothing else waits' as effect
  from sessions s
 where s.pid in (select w.pid from writing w) and s.seconds > 10
union all
select 'late_event', 'prepared transaction ' || p.gid, null, null, p.database::text, 'prepared', p.seconds, null,
       'its events are routed when it is committed; end it with COMMIT PREPARED or ROLLBACK PREPARED'
  from prepared p
 where p.writes and p.seconds > 10
union all
(select distinct on (h.kind)
        'vacuum', h.kind || coalesce(' ' || h.name, ' pid ' || h.pid, ''), h.pid, h.application_name::text, h.datname,
        h.state::text, h.seconds, h.xids, 'vacuum cannot remove rows that were deleted since; tables grow and queries become slower'
   from horizon h
  order by h.kind, h.xids desc)
union all
(select 'notify_queue', 'pid ' || s.pid, s.pid, s.application_name::text, s.datname::text, s.state::text, s.seconds, null,
        'the NOTIFY queue is ' || round(100 * pg_notification_queue_usage()) || ' % full; it cannot be shortened behind '
        'a listener in a transaction'
   from sessions s
  where pg_notification_queue_usage() > 0.1 and s.backend_type = 'client backend'
    and (s.state like 'idle in transaction%' or s.wait_event = 'ClientWrite' or s.seconds > 60)
  order by s.wait_event is distinct from 'ClientWrite', s.xact_start nulls last
  limit 1)
union all
select case when o.key = 726003 then 'lease' else 'bell_key' end, 'pid ' || o.pid, o.pid, o.application_name::text,
       o.datname::text, o.state::text, o.seconds, null,
       case when o.key = 726003 and o.stranger then 'role ' || o.usename || ' has no right to do this work: consumers continue without the lock'
            when o.key = 726003 then 'no consumer of that worker can work'
            else 'a consumer cannot be armed, or producers send no notification' end
       || ': a session of another program holds advisory lock (' || o.key || ', ' || o.slot || ')'
  from ours o
 where o.application_name not like 'iu-listen %' or o.key = 726003 and o.stranger
union all
select 'trigger', t.tab || '.' || t.name, null, null, current_database()::text,
       case g.tgenabled when 'D' then 'disabled' when 'O' then 'not always' when 'R' then 'replica only'
            else 'missing' end,
       null, null,
       case when t.name like '%bell' then 'no consumer is woken: events wait for the catch-up poll'
            else 'events may be inserted without a stamp, and be lost' end
  from (values ('event_outbox', 'zz_event_outbox_stamp'), ('event_outbox', 'zz_event_outbox_restamp'),
               ('event_outbox', 'zz_event_outbox_bell'), ('dot_config', 'zz_dot_config_bell')) t(tab, name)
  left join pg_catalog.pg_trigger g on g.tgrelid = to_regclass('public.' || t.tab) and g.tgname = t.name
 where g.tgenabled is distinct from 'A';
comment on view public.v_iu_blocker is
    'The blockers: sessions, prepared transactions, replication slots, foreign locks and triggers that delay or '
    'threaten a consumer.';
