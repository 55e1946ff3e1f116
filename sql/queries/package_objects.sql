-- Every object of the package: which file makes it, and whether it is here. A test compares this list with what
-- the files really make.

with objects (file, kind, name) as (
    values
        ('worker/004_migration_ledger', 'table', 'iu_migration'),
        ('worker/005_outbox_position', 'sequence', 'event_outbox_event_seq'),
        ('worker/005_outbox_position', 'column', 'event_outbox.xact_id'),
        ('worker/005_outbox_position', 'column', 'event_outbox.event_seq'),
        ('worker/005_outbox_position', 'column', 'event_outbox.traceparent'),
        ('worker/005_outbox_position', 'function', 'fn_iu_outbox_stamp()'),
        ('worker/005_outbox_position', 'trigger', 'event_outbox.zz_event_outbox_stamp'),
        ('worker/005_outbox_position', 'trigger', 'event_outbox.zz_event_outbox_restamp'),
        ('worker/005_outbox_position', 'table', 'iu_outbox_anchor'),
        ('worker/005_outbox_position', 'function', 'fn_iu_outbox_tick()'),
        ('worker/005_outbox_position', 'function', 'fn_iu_outbox_refusal(uuid,pg_snapshot)'),
        ('worker/005_outbox_position', 'function', 'fn_iu_event_snapshot(uuid)'),
        ('worker/006_outbox_position_index', 'index', 'event_outbox_tick_idx'),
        ('worker/006_outbox_position_index', 'index', 'event_outbox_order_idx'),
        ('worker/007_attempt_columns', 'column', 'iu_route_attempt.route_count'),
        ('worker/007_attempt_columns', 'column', 'iu_route_attempt.xact_id'),
        ('worker/007_attempt_columns', 'column', 'iu_route_attempt.traceparent'),
        ('worker/007_attempt_columns', 'function', 'fn_iu_trace_context(text)'),
        ('worker/008_route_worker_substrate', 'table', 'iu_route_worker_cursor'),
        ('worker/008_route_worker_substrate', 'table', 'iu_route_dead_letter'),
        ('worker/009_route_worker_functions', 'function', 'fn_iu_route_worker_enabled()'),
        ('worker/009_route_worker_functions', 'function', 'fn_iu_route_deliver(text,uuid,jsonb)'),
        ('worker/009_route_worker_functions', 'function', 'fn_iu_route_worker_run(text,integer)'),
        ('worker/009_route_worker_functions', 'function', 'fn_iu_route_dead_letter_replay(uuid,text)'),
        ('worker/009_route_worker_functions', 'function', 'fn_iu_route_worker_health(text)'),
        ('worker/009_route_worker_functions', 'view', 'v_iu_route_attempt_summary'),
        ('worker/009_route_worker_functions', 'view', 'v_iu_event_backlog'),
        ('worker/009_route_worker_functions', 'view', 'v_iu_route_dead_letter_open'),
        ('worker/010_wake', 'function', 'fn_iu_ring_bell()'),
        ('worker/010_wake', 'trigger', 'event_outbox.zz_event_outbox_bell'),
        ('worker/010_wake', 'trigger', 'dot_config.zz_dot_config_bell'),
        ('worker/010_wake', 'table', 'iu_consumer_heartbeat'),
        ('worker/011_attempt_index', 'index', 'iu_route_attempt_tick_idx'),
        ('worker/011_attempt_index', 'index', 'iu_route_dead_letter_tick_idx'),
        ('worker/011_attempt_index', 'index', 'iu_route_dead_letter_open_idx'),
        ('worker/011_attempt_index', 'index', 'iu_route_dead_letter_kind_idx'),
        ('worker/011_attempt_index', 'index', 'iu_route_dead_letter_age_idx'),
        ('worker/012_delivery', 'key', 'iu_core.delivery_enabled'),
        ('worker/012_delivery', 'key', 'iu_core.delivery_live_routes'),
        ('worker/012_delivery', 'key', 'iu_core.delivery_sql_functions'),
        ('worker/012_delivery', 'function', 'fn_iu_delivery_enabled()'),
        ('worker/012_delivery', 'function', 'fn_iu_delivery_list(text)'),
        ('worker/012_delivery', 'function', 'fn_iu_delivery_lock(text)'),
        ('worker/012_delivery', 'table', 'iu_delivery_change'),
        ('worker/012_delivery', 'table', 'iu_route_delivery'),
        ('worker/012_delivery', 'index', 'iu_route_delivery_event_idx'),
        ('worker/012_delivery', 'index', 'iu_route_delivery_due_idx'),
        ('worker/012_delivery', 'index', 'iu_route_delivery_failed_idx'),
        ('worker/012_delivery', 'index', 'iu_route_delivery_subject_idx'),
        ('worker/012_delivery', 'column', 'iu_outbound_route.delivery_policy'),
        ('worker/012_delivery', 'function', 'fn_iu_delivery_policy(jsonb)'),
        ('worker/012_delivery', 'function', 'fn_iu_delivery_policy_check(jsonb)'),
        ('worker/012_delivery', 'function', 'fn_iu_delivery_queues(iu_outbound_route[])'),
        ('worker/012_delivery', 'function', 'fn_iu_outbound_route_guard()'),
        ('worker/012_delivery', 'trigger', 'iu_outbound_route.zz_iu_outbound_route_guard'),
        ('worker/012_delivery', 'function', 'fn_iu_delivery_list_guard()'),
        ('worker/012_delivery', 'trigger', 'dot_config.zz_dot_config_live_routes'),
        ('worker/012_delivery', 'function', 'fn_iu_route_dispatch(text,uuid,jsonb)'),
        ('worker/012_delivery', 'function', 'fn_iu_delivery_function(text)'),
        ('worker/012_delivery', 'function', 'fn_iu_route_live(text,boolean,text,text)'),
        ('worker/013_watch', 'function', 'fn_iu_outbox_consumed(iu_route_worker_cursor,xid8,bigint,uuid)'),
        ('worker/013_watch', 'view', 'v_iu_worker_health'),
        ('worker/013_watch', 'view', 'v_iu_culprit'),
        ('worker/014_audit', 'table', 'iu_audit'),
        ('worker/014_audit', 'table', 'iu_audit_missing'),
        ('worker/014_audit', 'function', 'fn_iu_audit_confirm(text)'),
        ('worker/014_audit', 'function', 'fn_iu_audit_page(text,integer,bigint)'),
        ('worker/014_audit', 'function', 'fn_iu_audit_repair(text,integer)'),
        ('worker/014_audit', 'view', 'v_iu_audit_missing'),
        ('worker/014_audit', 'view', 'v_iu_audit'),
        ('worker/015_reanchor', 'function', 'fn_iu_outbox_full_xid(xid,xid8)'),
        ('worker/015_reanchor', 'function', 'fn_iu_outbox_verdict(iu_route_worker_cursor,boolean,xid8,xid8,bigint,uuid,xid)'),
        ('worker/015_reanchor', 'function', 'fn_iu_outbox_judged(text[],xid8,pg_snapshot,timestamp with time zone,xid8,bigint)'),
        ('worker/015_reanchor', 'function', 'fn_iu_outbox_reanchor(timestamp with time zone,boolean,boolean)'),
        ('worker/016_retention', 'table', 'iu_retention_policy'),
        ('worker/016_retention', 'function', 'fn_iu_retention_released(uuid)'),
        ('worker/016_retention', 'function', 'fn_iu_retention_domains(timestamp with time zone)'),
        ('worker/016_retention', 'function', 'fn_iu_retention_run(text,integer,interval,jsonb)'),
        ('worker/016_retention', 'function', 'fn_iu_retention_plan(interval,text[])'),
        ('worker/016_retention', 'function', 'fn_iu_outbox_retired()'),
        ('worker/016_retention', 'function', 'fn_iu_outbox_partitions()'),
        ('worker/017_trace', 'function', 'fn_iu_trace_id(uuid,text)'),
        ('worker/017_trace', 'function', 'fn_iu_span_id(text,text)'),
        ('worker/017_trace', 'view', 'v_iu_route_attempt'),
        ('worker/017_trace', 'table', 'iu_trace_cursor'),
        ('worker/017_trace', 'function', 'fn_iu_trace_register(text)'),
        ('worker/017_trace', 'function', 'fn_iu_trace_tick(text)'),
        ('worker/017_trace', 'function', 'fn_iu_trace_commit_at(xid8)'),
        ('worker/017_trace', 'view', 'v_iu_trace_attempt'),
        ('worker/017_trace', 'view', 'v_iu_trace_letter'),
        ('worker/017_trace', 'function', 'fn_iu_trace_attempts(pg_snapshot,pg_snapshot,xid8,bigint,integer)'),
        ('worker/017_trace', 'function', 'fn_iu_trace_letters(pg_snapshot,pg_snapshot,xid8,uuid,integer)'),
        ('worker/017_trace', 'function', 'fn_iu_trace_again(timestamp with time zone)'),
        ('worker/017_trace', 'function', 'fn_iu_trace_accepted(text,pg_snapshot,xid8,bigint,xid8,uuid,boolean,bigint,bigint,bigint)'),
        ('worker/018_measure', 'view', 'v_iu_trace_lag'),
        ('worker/018_measure', 'function', 'fn_iu_measure(text)'),
        ('worker/018_measure', 'function', 'fn_iu_decision_latency(text,bigint,integer)'),
        ('worker/019_delivery_settle', 'table', 'iu_delivery_lease'),
        ('worker/019_delivery_settle', 'function', 'fn_iu_delivery_lease(text,uuid,double precision,boolean,uuid)'),
        ('worker/019_delivery_settle', 'function', 'fn_iu_delivery_release(text,uuid)'),
        ('worker/019_delivery_settle', 'table', 'iu_delivery_breaker'),
        ('worker/019_delivery_settle', 'function', 'fn_iu_route_resume(text)'),
        ('worker/019_delivery_settle', 'function', 'fn_iu_delivery_held(text,boolean,boolean,timestamp with time zone,timestamp with time zone)'),
        ('worker/019_delivery_settle', 'function', 'fn_iu_delivery_settle(text,uuid,text[],bigint[],double precision[],double precision[],text[],bigint[],text[],double precision[],double precision[],text[],text[],double precision[])'),
        ('worker/020_delivery_take', 'function', 'fn_iu_delivery_take(text,text[],integer[],bigint[],bigint[],text[],bigint[])'),
        ('worker/020_delivery_take', 'function', 'fn_iu_delivery_hand_over(text,text[],integer[],bigint[])'),
        ('worker/020_delivery_take', 'view', 'v_iu_delivery'),
        ('worker/020_delivery_take', 'view', 'v_iu_delivery_parked'),
        ('worker/021_batch_failure', 'function', 'fn_iu_route_worker_failed(text,integer,text,boolean,uuid,text)'),
        ('worker/021_batch_failure', 'function', 'fn_iu_outbox_next(iu_route_worker_cursor,integer)'),
        ('worker/024_dead_letters', 'function', 'fn_iu_delivery_cancel(text,uuid,text,text,bigint,bigint,integer)'),
        ('worker/024_dead_letters', 'function', 'fn_iu_dead_letters_open(text,text,timestamp with time zone,uuid,text,timestamp with time zone,timestamp with time zone,uuid,integer)'),
        ('worker/024_dead_letters', 'function', 'fn_iu_dead_letters_replay(text,text,timestamp with time zone,uuid,text,text,timestamp with time zone,timestamp with time zone,uuid,integer)'),
        ('worker/024_dead_letters', 'function', 'fn_iu_dead_letters_queue(uuid[],boolean,text)'),
        ('worker/024_dead_letters', 'function', 'fn_iu_dead_letters_resolve(uuid[],text,text)'),
        ('runtime/060_activate_inert', 'key', 'iu_core.route_worker_enabled'),
        ('runtime/060_activate_inert', 'row', 'iu_route_worker_cursor.iu_outbound_default'))
select o.file, o.kind, o.name,
       case o.kind
           when 'table' then (to_regclass('public.' || o.name) is not null)
           when 'view' then (to_regclass('public.' || o.name) is not null)
           when 'sequence' then (to_regclass('public.' || o.name) is not null)
           when 'index' then (to_regclass('public.' || o.name) is not null)
           -- Not to_regprocedure: until 16 it raises when the type of an argument is missing.
           when 'function' then exists (
               select from pg_proc p
                where p.pronamespace = 'public'::regnamespace
                  and o.name = p.proname || '('
                               || replace(replace(oidvectortypes(p.proargtypes), ', ', ','), 'public.', '') || ')')
           when 'column' then exists (
               select from pg_attribute a
                where a.attrelid = to_regclass('public.' || split_part(o.name, '.', 1))
                  and a.attname = split_part(o.name, '.', 2) and not a.attisdropped)
           when 'trigger' then exists (
               select from pg_trigger t
                where t.tgrelid = to_regclass('public.' || split_part(o.name, '.', 1))
                  and t.tgname = split_part(o.name, '.', 2))
           when 'key' then exists (select from public.dot_config d where d.key = o.name)
           -- Rows cannot be looked for in a table that may be missing; cursor_exists.sql does it.
           when 'row' then false
       end as present
  from objects o
