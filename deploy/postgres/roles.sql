-- Five group roles: consumer, reader, operator, janitor and exporter. None of them can log in or owns an object.
--
-- Run it after `iu-listen apply`, as a superuser, or as the owner of these tables with CREATEROLE; and again after
-- every upgrade. It may be run any number of times: it revokes all privileges of the five roles on the objects named
-- here, and grants those listed below, so this file describes their privileges completely. People and services log in
-- with roles of their own:
--
--     create role consumer_a login in role iu_listen_consumer;      -- then \password consumer_a
--     create role alice      login in role iu_listen_operator;
--
-- The functions of the package run with the rights of their caller, so these grants are complete: no function is
-- SECURITY DEFINER. The views run with the rights of their owner.
--
-- Producers need no grants from this file: the triggers of the package fire without EXECUTE, and 005 grants the
-- sequence to public. Privileges of public on tables of other applications are not changed. In a database that was
-- created before PostgreSQL 15, public may create objects in schema public. Revoke that separately, because it concerns
-- all roles.
--
-- needs: worker/004 to 026, functions/, runtime/060
-- locks: none for which readers or producers wait

begin;

-- Roles --------------------------------------------------------------------------------------------------

-- Roles belong to the whole cluster: they may exist already, or be created for another database at the same time.
do $$
declare
    v_role text;
begin
    foreach v_role in array array['iu_listen_consumer', 'iu_listen_reader', 'iu_listen_operator', 'iu_listen_janitor',
                                  'iu_listen_exporter'] loop
        begin
            if not exists (select from pg_catalog.pg_roles r where r.rolname = v_role) then
                execute format('create role %I nologin', v_role);
            end if;
        exception when duplicate_object or unique_violation then
            null;
        end;
        execute format('grant connect on database %I to %I', current_database(), v_role);
    end loop;
end
$$;

comment on role iu_listen_consumer is 'The rights that a running iu-listen consumer needs.';
comment on role iu_listen_reader is 'Reads the state of routing and delivery, without payloads; changes nothing.';
comment on role iu_listen_operator is 'A reader that also opens and closes gates and routes, replays dead letters and moves cursors.';
comment on role iu_listen_exporter is 'Reads attempts and dead letters for the trace export. A consumer that exports traces has both roles.';
comment on role iu_listen_janitor is 'Deletes rows by the retention policies. It can delete any event and the audit, so grant it only to that job.';

-- Start from nothing -------------------------------------------------------------------------------------

-- Revoking a privilege on a table also revokes it on the columns of the table.
revoke all on
    public.dot_config, public.event_type_registry, public.event_outbox, public.event_outbox_event_seq,
    public.iu_outbound_route, public.iu_route_attempt,
    public.iu_migration, public.iu_outbox_anchor, public.iu_outbox_home, public.iu_outbox_site, public.iu_route_worker_cursor,
    public.iu_route_dead_letter,
    public.iu_consumer_heartbeat, public.iu_retention_policy, public.iu_completeness_pass, public.iu_completeness_missing,
    public.iu_trace_cursor, public.v_iu_route_attempt, public.v_iu_trace_attempt, public.v_iu_trace_dead_letter,
    public.v_iu_route_attempt_summary, public.v_iu_event_backlog, public.v_iu_route_dead_letter_open,
    public.v_iu_worker_health, public.v_iu_blocker, public.v_iu_completeness, public.v_iu_completeness_missing,
    public.v_iu_trace_lag, public.iu_delivery_change, public.iu_route_delivery, public.iu_delivery_lease,
    public.iu_delivery_breaker, public.iu_delivery_unusable, public.v_iu_delivery, public.v_iu_delivery_parked
    from iu_listen_consumer, iu_listen_reader, iu_listen_operator, iu_listen_janitor, iu_listen_exporter;

-- The bases of the package count refused events with this sequence; the emitter of a real IU Core may have none.
do $$
begin
    if to_regclass('public.iu_emit_refused_seq') is not null then
        revoke all on public.iu_emit_refused_seq
            from iu_listen_consumer, iu_listen_reader, iu_listen_operator, iu_listen_janitor, iu_listen_exporter;
        grant update on public.iu_emit_refused_seq to iu_listen_operator;
    end if;
end
$$;

-- Only roles that are listed below may call the functions of the worker. Trigger functions keep their privileges,
-- because they cannot be called directly.
revoke execute on function
    public.fn_iu_outbox_tick(), public.fn_iu_outbox_refusal(uuid, pg_snapshot), public.fn_iu_outbox_refuse(text),
    public.fn_iu_outbox_admission(text, boolean), public.fn_iu_lease_holders(integer, text),
    public.fn_iu_route_worker_enabled(), public.fn_iu_route_deliver(text, uuid, jsonb),
    public.fn_iu_route_dispatch(text, uuid, jsonb), public.fn_iu_delivery_enabled(),
    public.fn_iu_delivery_closed_switch(text), public.fn_iu_delivery_function(text), public.fn_iu_delivery_caller(regprocedure),
    public.fn_iu_route_live(text, boolean, text, text),
    public.fn_iu_delivery_queued_routes(public.iu_outbound_route[]),
    public.fn_iu_delivery_lease(text, uuid, double precision, boolean, uuid), public.fn_iu_delivery_release(text, uuid),
    public.fn_iu_delivery_paused_by(text, boolean, boolean, timestamptz, timestamptz),
    public.fn_iu_delivery_settle(text, uuid, text[], bigint[], uuid[], text[], double precision[], double precision[],
                                 text[], bigint[], uuid[], text[], double precision[], double precision[], text[], text[],
                                 text[], double precision[], boolean[]),
    public.fn_iu_delivery_lease_renew(text, uuid, boolean),
    public.fn_iu_delivery_record_in_flight(text, uuid, text[], bigint[]),
    public.fn_iu_breaker_after(public.iu_delivery_breaker, text, jsonb, timestamptz, bigint, boolean, double precision,
                               text, double precision),
    public.fn_iu_breaker_store(public.iu_delivery_breaker), public.fn_iu_breaker_success(text[], text[]),
    public.fn_iu_delivery_policy_of(text), public.fn_iu_delivery_backoff(jsonb, integer),
    public.fn_iu_delivery_dead_letter(public.iu_route_delivery, text, text, jsonb, timestamptz, boolean),
    public.fn_iu_delivery_settle_failed(public.iu_delivery_failure),
    public.fn_iu_delivery_interrupted(text[], bigint[]),
    public.fn_iu_delivery_unrecorded(text, uuid, text, bigint, text, text),
    public.fn_iu_delivery_settle_sent(text[], bigint[], uuid[], text[], double precision[], double precision[]),
    public.fn_iu_event_payload(jsonb, bigint),
    public.fn_iu_delivery_first(text, bigint),
    public.fn_iu_delivery_due(text, text, integer, bigint[], text[], bigint[]),
    public.fn_iu_delivery_choose(text, text, boolean, integer, integer, bigint, bigint, bigint[], text[], bigint[]),
    public.fn_iu_delivery_next_due(text, bigint[]),
    public.fn_iu_delivery_new(text, text, boolean, integer, bigint, bigint),
    public.fn_iu_delivery_newest(text, text, boolean, bigint),
    public.fn_iu_delivery_rows(public.iu_outbound_route, bigint[], bigint, bigint),
    public.fn_iu_delivery_take(text, text[], integer[], bigint[], bigint[], bigint[], text[], bigint[], bigint),
    public.fn_iu_delivery_hand_over(text, text[], integer[], bigint[]),
    public.fn_iu_delivery_peek(text, text[]), public.fn_iu_delivery_of_call(text, uuid, text, uuid, boolean),
    public.fn_iu_delivery_sweep(text, text, bigint, bigint), public.fn_iu_delivery_seek(text, text, bigint, bigint),
    public.fn_iu_route_resume(text),
    public.fn_iu_delivery_cancel(text, uuid, text, text, bigint, bigint, integer),
    public.fn_iu_dead_letters_open(text, text, timestamptz, uuid, text, timestamptz, timestamptz, uuid, integer),
    public.fn_iu_dead_letters_replay(text, text, timestamptz, uuid, text, text, timestamptz, timestamptz, uuid, integer),
    public.fn_iu_dead_letters_queue(uuid[], boolean, text), public.fn_iu_dead_letters_resolve(uuid[], text, text),
    public.fn_iu_delivery_problems(public.iu_outbound_route),
    public.fn_iu_delivery_unusable(text, uuid, text[], text[], text[]),
    public.fn_iu_route_worker_run(text, integer), public.fn_iu_route_dead_letter_replay(uuid, text),
    public.fn_iu_batch_idle(public.iu_route_worker_cursor), public.fn_iu_batch_routes(public.iu_route_worker_cursor),
    public.fn_iu_batch_tick(public.iu_route_worker_cursor),
    public.fn_iu_batch_own_events(public.iu_route_worker_cursor, xid8),
    public.fn_iu_batch_page(public.iu_route_worker_cursor, public.iu_batch_range, public.iu_batch_routes, bigint, integer),
    public.fn_iu_batch_shorten(public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes, boolean, integer),
    public.fn_iu_batch_attempts(public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes, integer, integer),
    public.fn_iu_batch_decide(public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes,
                              public.iu_batch_result),
    public.fn_iu_batch_enqueue(public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes,
                               public.iu_batch_result),
    public.fn_iu_batch_call(public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes,
                            public.iu_batch_result, boolean),
    public.fn_iu_batch_give_up(public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes,
                               public.iu_batch_result),
    public.fn_iu_batch_dead_letters(public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes,
                                    public.iu_batch_result, boolean),
    public.fn_iu_batch_advance(public.iu_route_worker_cursor, public.iu_batch_page, xid8),
    public.fn_iu_batch_finish(public.iu_route_worker_cursor, public.iu_batch_result, integer, boolean, boolean),
    public.fn_iu_error_of_event(text), public.fn_iu_error_of_system(text), public.fn_iu_decision_status(text),
    public.fn_iu_health_facts(public.iu_route_worker_cursor), public.fn_iu_health_consumer(public.iu_health_facts),
    public.fn_iu_health_progress(public.iu_health_facts, text), public.fn_iu_health_delivery(text, text),
    public.fn_iu_health_warnings(public.iu_health_facts, public.iu_route_worker_cursor),
    public.fn_iu_health_condition(public.iu_health_facts),
    public.fn_iu_dead_letter_decide(public.iu_route_dead_letter, public.iu_outbound_route, integer),
    public.fn_iu_route_worker_health(text), public.fn_iu_event_snapshot(uuid), public.fn_iu_json_exceeds(jsonb, bigint),
    public.fn_iu_route_worker_failed(text, integer, text, boolean, uuid, text),
    public.fn_iu_outbox_next(public.iu_route_worker_cursor, integer), public.fn_iu_route_page(text, text[], text[], integer),
    public.fn_iu_route_candidates(public.iu_outbound_route[], text[], text[]),
    public.fn_iu_outbox_consumed(public.iu_route_worker_cursor, xid8, bigint, uuid),
    public.fn_iu_outbox_full_xid(xid, xid8),
    public.fn_iu_outbox_verdict(public.iu_route_worker_cursor, boolean, xid8, xid8, bigint, uuid, xid),
    public.fn_iu_outbox_judged(text[], xid8, pg_snapshot, timestamptz, xid8, bigint),
    public.fn_iu_outbox_reanchor_plan(text[], xid8, pg_snapshot, timestamptz, xid8, bigint),
    public.fn_iu_trace_reanchor(uuid, pg_snapshot, boolean, xid8, timestamptz),
    public.fn_iu_outbox_reanchor(timestamptz, boolean, boolean),
    public.fn_iu_completeness_page(text, integer, bigint), public.fn_iu_completeness_confirm(text),
    public.fn_iu_completeness_begin(public.iu_completeness_pass, text),
    public.fn_iu_completeness_walk(public.iu_completeness_pass, text, integer),
    public.fn_iu_completeness_scan(public.iu_completeness_pass, bigint),
    public.fn_iu_completeness_judge(public.iu_completeness_pass, bigint),
    public.fn_iu_completeness_repair(text, integer),
    public.fn_iu_retention_releasable(uuid), public.fn_iu_retention_domains(timestamptz),
    public.fn_iu_retention_event_verdict(
        text, public.iu_route_worker_cursor[], timestamptz, timestamptz, xid8, bigint, uuid),
    public.fn_iu_retention_attempt_verdict(text, uuid, text),
    public.fn_iu_retention_dead_letter_verdict(text, uuid, integer, timestamptz),
    public.fn_iu_retention_run_events(integer, timestamptz, jsonb),
    public.fn_iu_retention_run_attempts(integer, timestamptz, jsonb),
    public.fn_iu_retention_run_dead_letters(integer, timestamptz, jsonb),
    public.fn_iu_retention_run(text, integer, interval, jsonb), public.fn_iu_retention_plan(interval, text[]),
    public.fn_iu_outbox_partitions(),
    public.fn_iu_idempotency_key(text, uuid), public.fn_iu_trace_context(text), public.fn_iu_trace_id(uuid, text), public.fn_iu_span_id(text, text),
    public.fn_iu_trace_commit_at(xid8),
    public.fn_iu_trace_register(text), public.fn_iu_trace_tick(text), public.fn_iu_trace_again(timestamptz),
    public.fn_iu_trace_attempts(pg_snapshot, pg_snapshot, xid8, bigint, integer),
    public.fn_iu_trace_dead_letters(pg_snapshot, pg_snapshot, xid8, uuid, integer),
    public.fn_iu_trace_accepted(text, pg_snapshot, xid8, bigint, xid8, uuid, boolean, bigint, bigint, bigint),
    public.fn_iu_metrics(text), public.fn_iu_progress_missing(text), public.fn_iu_delivery_progress_missing(text),
    public.fn_iu_decision_latency(text, bigint, integer)
    from public, iu_listen_consumer, iu_listen_reader, iu_listen_operator, iu_listen_janitor, iu_listen_exporter;

-- Triggers on tables of IU Core call these functions with the rights of the application that writes an event, or changes a
-- route or a setting. The functions reveal nothing that the caller may not read.
grant execute on function
    public.fn_iu_delivery_policy(jsonb), public.fn_iu_delivery_policy_check(jsonb), public.fn_iu_delivery_list(text),
    public.fn_iu_delivery_options_check(text, text, jsonb), public.fn_iu_delivery_options(text),
    public.fn_iu_delivery_scheme(text), public.fn_iu_bell_due(text),
    public.fn_iu_ring_consumers()
    to public;

grant usage on schema public
    to iu_listen_consumer, iu_listen_reader, iu_listen_operator, iu_listen_janitor, iu_listen_exporter;

-- Only roles with pg_read_all_stats see the state and the age of other sessions, and with them the text of statements,
-- which may contain payloads and passwords. The consumer needs this role to name the sessions that delay it. The reader
-- does not get it, so it sees only pid and application of these sessions. The same holds for the consumer if the role
-- that runs this file may not grant pg_read_all_stats.
do $$
begin
    grant pg_read_all_stats to iu_listen_consumer;
    if pg_catalog.pg_has_role('iu_listen_reader', 'pg_read_all_stats', 'member') then
        revoke pg_read_all_stats from iu_listen_reader;
    end if;
exception when insufficient_privilege then
    raise notice 'pg_read_all_stats was neither granted nor revoked: a superuser may do it later';
end
$$;

-- Consumer -----------------------------------------------------------------------------------------------
--
-- LISTEN, NOTIFY and advisory locks need no privilege. Privileges are granted on columns instead of tables where
-- possible.

grant execute on function
    public.fn_iu_core_routes_enabled(), public.fn_iu_route_worker_enabled(),
    public.fn_iu_outbox_refusal(uuid, pg_snapshot), public.fn_iu_outbox_tick(), public.fn_iu_outbox_refuse(text),
    public.fn_iu_outbox_admission(text, boolean), public.fn_iu_lease_holders(integer, text),
    public.fn_iu_route_worker_run(text, integer), public.fn_iu_route_deliver(text, uuid, jsonb),
    public.fn_iu_route_worker_health(text), public.fn_iu_progress_missing(text), public.fn_iu_delivery_progress_missing(text),
    public.fn_iu_idempotency_key(text, uuid), public.fn_iu_trace_context(text),
    public.fn_iu_event_snapshot(uuid), public.fn_iu_json_exceeds(jsonb, bigint), public.fn_iu_route_worker_failed(text, integer, text, boolean, uuid, text),
    public.fn_iu_outbox_next(public.iu_route_worker_cursor, integer), public.fn_iu_route_page(text, text[], text[], integer),
    public.fn_iu_route_candidates(public.iu_outbound_route[], text[], text[])
    to iu_listen_consumer;

-- The steps of a batch, and of health.
grant execute on function
    public.fn_iu_batch_idle(public.iu_route_worker_cursor), public.fn_iu_batch_routes(public.iu_route_worker_cursor),
    public.fn_iu_batch_tick(public.iu_route_worker_cursor),
    public.fn_iu_batch_own_events(public.iu_route_worker_cursor, xid8),
    public.fn_iu_batch_page(public.iu_route_worker_cursor, public.iu_batch_range, public.iu_batch_routes, bigint, integer),
    public.fn_iu_batch_shorten(public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes, boolean, integer),
    public.fn_iu_batch_attempts(public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes, integer, integer),
    public.fn_iu_batch_decide(public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes,
                              public.iu_batch_result),
    public.fn_iu_batch_enqueue(public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes,
                               public.iu_batch_result),
    public.fn_iu_batch_call(public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes,
                            public.iu_batch_result, boolean),
    public.fn_iu_batch_give_up(public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes,
                               public.iu_batch_result),
    public.fn_iu_batch_dead_letters(public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes,
                                    public.iu_batch_result, boolean),
    public.fn_iu_batch_advance(public.iu_route_worker_cursor, public.iu_batch_page, xid8),
    public.fn_iu_batch_finish(public.iu_route_worker_cursor, public.iu_batch_result, integer, boolean, boolean),
    public.fn_iu_error_of_event(text), public.fn_iu_error_of_system(text), public.fn_iu_decision_status(text),
    public.fn_iu_health_facts(public.iu_route_worker_cursor), public.fn_iu_health_consumer(public.iu_health_facts),
    public.fn_iu_health_progress(public.iu_health_facts, text), public.fn_iu_health_delivery(text, text),
    public.fn_iu_health_warnings(public.iu_health_facts, public.iu_route_worker_cursor),
    public.fn_iu_health_condition(public.iu_health_facts)
    to iu_listen_consumer;

-- Delivery. The privileges that a SQL function as a target needs are granted separately, when a route is set up.
grant execute on function
    public.fn_iu_route_dispatch(text, uuid, jsonb), public.fn_iu_delivery_closed_switch(text), public.fn_iu_delivery_enabled(),
    public.fn_iu_delivery_function(text), public.fn_iu_delivery_caller(regprocedure),
    public.fn_iu_delivery_queued_routes(public.iu_outbound_route[]),
    public.fn_iu_delivery_lease(text, uuid, double precision, boolean, uuid), public.fn_iu_delivery_release(text, uuid),
    public.fn_iu_delivery_paused_by(text, boolean, boolean, timestamptz, timestamptz),
    public.fn_iu_delivery_settle(text, uuid, text[], bigint[], uuid[], text[], double precision[], double precision[],
                                 text[], bigint[], uuid[], text[], double precision[], double precision[], text[], text[],
                                 text[], double precision[], boolean[]),
    public.fn_iu_delivery_lease_renew(text, uuid, boolean),
    public.fn_iu_delivery_record_in_flight(text, uuid, text[], bigint[]),
    public.fn_iu_breaker_after(public.iu_delivery_breaker, text, jsonb, timestamptz, bigint, boolean, double precision,
                               text, double precision),
    public.fn_iu_breaker_store(public.iu_delivery_breaker), public.fn_iu_breaker_success(text[], text[]),
    public.fn_iu_delivery_policy_of(text), public.fn_iu_delivery_backoff(jsonb, integer),
    public.fn_iu_delivery_dead_letter(public.iu_route_delivery, text, text, jsonb, timestamptz, boolean),
    public.fn_iu_delivery_settle_failed(public.iu_delivery_failure),
    public.fn_iu_delivery_interrupted(text[], bigint[]),
    public.fn_iu_delivery_unrecorded(text, uuid, text, bigint, text, text),
    public.fn_iu_delivery_settle_sent(text[], bigint[], uuid[], text[], double precision[], double precision[]),
    public.fn_iu_event_payload(jsonb, bigint),
    public.fn_iu_delivery_first(text, bigint),
    public.fn_iu_delivery_due(text, text, integer, bigint[], text[], bigint[]),
    public.fn_iu_delivery_choose(text, text, boolean, integer, integer, bigint, bigint, bigint[], text[], bigint[]),
    public.fn_iu_delivery_next_due(text, bigint[]),
    public.fn_iu_delivery_new(text, text, boolean, integer, bigint, bigint),
    public.fn_iu_delivery_newest(text, text, boolean, bigint),
    public.fn_iu_delivery_rows(public.iu_outbound_route, bigint[], bigint, bigint),
    public.fn_iu_delivery_take(text, text[], integer[], bigint[], bigint[], bigint[], text[], bigint[], bigint),
    public.fn_iu_delivery_hand_over(text, text[], integer[], bigint[]),
    public.fn_iu_delivery_peek(text, text[]), public.fn_iu_delivery_of_call(text, uuid, text, uuid, boolean),
    public.fn_iu_delivery_sweep(text, text, bigint, bigint), public.fn_iu_delivery_seek(text, text, bigint, bigint)
    to iu_listen_consumer;
grant select, delete,
      insert (route_code, worker_name, event_ref, subject_key, attempt_no, route_count, traceparent, replayed_by),
      update (attempt_no, tries, due_at, failed_at, failure_code, failure_detail, credits, at_fault, alone)
    on public.iu_route_delivery to iu_listen_consumer;
grant select, insert (worker_name, owner, seconds, released),
      update (owner, backend, backend_start, seconds, renewed_at, released, settled_at, in_flight_routes, in_flight_ids)
    on public.iu_delivery_lease to iu_listen_consumer;
grant execute on function public.fn_iu_delivery_unusable(text, uuid, text[], text[], text[]) to iu_listen_consumer;
grant select, delete, insert (worker_name, route_code, consumer_id, why, hint), update (consumer_id, why, hint, since)
    on public.iu_delivery_unusable to iu_listen_consumer;
grant select, insert (route_code),
      update (failures, failed_ids, opened_at, trials, trial_at, trial_id, why, dead_letters, stopped_at, lifted_at)
    on public.iu_delivery_breaker to iu_listen_consumer;

-- The consumer reads gates, and never changes them: only an operator does.
grant select (key, value, updated_at) on public.dot_config to iu_listen_consumer;

-- All columns of events, because a dead letter stores the whole row, also columns that are added later.
grant select on public.event_outbox, public.event_outbox_event_seq, public.iu_outbox_anchor to iu_listen_consumer;

-- The identity of the cluster, the refusal until a reanchor, and the sites of consumers.
grant select, update (system_identifier, major, refusal, refused_at) on public.iu_outbox_home to iu_listen_consumer;
grant select, insert (site), update (seen_at, accepted_at, accepted_by) on public.iu_outbox_site to iu_listen_consumer;

-- All columns of routes, because a batch reads routes as whole rows.
grant select on public.iu_outbound_route to iu_listen_consumer;

-- UPDATE on the position and the statistics of a cursor, but not on its name, domain or history.
grant select, update (last_created_at, last_event_id, prev, tick, tick_floor, pos_seq, pos_id, own_xid, own_seq, hi_seq,
                      fresh_seq, queued_id, total_seen, total_attempts, total_skipped, total_dead_lettered, last_run_at, last_run_summary,
                      page_limit, failures, failed_at, failed_why, failed_events, failed_event, failed_route)
    on public.iu_route_worker_cursor to iu_listen_consumer;

-- The consumer may only add attempts to the audit, and neither change nor remove them. It may read the columns that
-- ON CONFLICT and RETURNING need.
grant select (status, idempotency_key, attempt_no),
      insert (event_ref, route_kind, route_code, status, decision, delivered, failure_code, idempotency_key, attempt_no,
              route_count, traceparent, batch_xact_id, target, created_at, finished_at)
    on public.iu_route_attempt to iu_listen_consumer;

-- The completeness check reads the attempts of events, and records its progress and its findings. It repairs nothing.
grant execute on function
    public.fn_iu_completeness_page(text, integer, bigint),
    public.fn_iu_completeness_begin(public.iu_completeness_pass, text),
    public.fn_iu_completeness_walk(public.iu_completeness_pass, text, integer),
    public.fn_iu_completeness_scan(public.iu_completeness_pass, bigint),
    public.fn_iu_completeness_judge(public.iu_completeness_pass, bigint),
    public.fn_iu_outbox_consumed(public.iu_route_worker_cursor, xid8, bigint, uuid)
    to iu_listen_consumer;
grant select (event_ref, route_kind, route_code, route_count, ctid) on public.iu_route_attempt to iu_listen_consumer;
grant select (event_ref, route_code, attempt_no) on public.iu_route_dead_letter to iu_listen_consumer;
grant select, insert (worker_name),
      update (pass, started_at, pos_seq, pos_id, from_seq, until_seq, walked, checked, suspects, missing, near,
              width, codes, paged_at, finished_at, last_checked, last_seconds, scan_id, scan_until, scan_ref,
              scan_missing)
    on public.iu_completeness_pass to iu_listen_consumer;
grant select, delete, insert (worker_name, event_ref), update (found, wanted, seen, confirmed_at, restamped_at)
    on public.iu_completeness_missing to iu_listen_consumer;
grant select on public.v_iu_completeness to iu_listen_consumer;

-- The consumer creates dead letters, reopens one when its event fails again, and resolves one when its replay is
-- delivered. Only operators replay dead letters.
grant select (idempotency_key, failure_code, failure_detail, event_snapshot),
      insert (worker_name, event_ref, route_kind, route_code, idempotency_key, attempt_no, event_snapshot, failure_code,
              failure_detail, created_at),
      update (resolved_at, resolution, attempt_no, failure_code, failure_detail, event_snapshot)
    on public.iu_route_dead_letter to iu_listen_consumer;

-- At its start the consumer checks that the package is complete and the worker exists, and `iu-listen health` uses the
-- same credentials. Of dead letters they need only the counts, not the content.
grant select on public.iu_migration, public.v_iu_event_backlog, public.v_iu_blocker to iu_listen_consumer;
grant select (worker_name, resolved_at) on public.iu_route_dead_letter to iu_listen_consumer;

-- Figures for metrics, if they are exported.
grant execute on function
    public.fn_iu_metrics(text), public.fn_iu_decision_latency(text, bigint, integer), public.fn_iu_trace_commit_at(xid8)
    to iu_listen_consumer;
grant select (id, xact_id, finished_at) on public.iu_route_attempt to iu_listen_consumer;
grant select (created_at) on public.iu_route_dead_letter to iu_listen_consumer;
grant select on public.v_iu_trace_lag to iu_listen_consumer;

-- The consumer writes its own heartbeat, and deletes the rows of consumers that have gone.
grant select, delete,
      insert (consumer_id, worker_name, host, pid, version, state, state_detail, listening, cadence_seconds,
              polling_why, last_wake, last_wake_at, wakes, events, lag_seconds),
      update (state, state_detail, listening, polling_why, beat_at, last_wake, last_wake_at, wakes, events, lag_seconds)
    on public.iu_consumer_heartbeat to iu_listen_consumer;

-- Reader -------------------------------------------------------------------------------------------------
--
-- For status, health, doctor, attempts, and all lists. It cannot read payloads: neither safe_payload nor
-- event_snapshot.

grant execute on function
    public.fn_iu_lease_holders(integer, text),
    public.fn_iu_core_routes_enabled(), public.fn_iu_route_worker_enabled(),
    public.fn_iu_outbox_refusal(uuid, pg_snapshot), public.fn_iu_route_worker_health(text), public.fn_iu_progress_missing(text),
    public.fn_iu_delivery_progress_missing(text), public.fn_iu_delivery_first(text, bigint),
    public.fn_iu_outbox_consumed(public.iu_route_worker_cursor, xid8, bigint, uuid),
    public.fn_iu_retention_releasable(uuid), public.fn_iu_retention_domains(timestamptz),
    public.fn_iu_retention_event_verdict(
        text, public.iu_route_worker_cursor[], timestamptz, timestamptz, xid8, bigint, uuid),
    public.fn_iu_retention_attempt_verdict(text, uuid, text),
    public.fn_iu_retention_dead_letter_verdict(text, uuid, integer, timestamptz),
    public.fn_iu_retention_plan(interval, text[]), public.fn_iu_outbox_partitions(),
    public.fn_iu_idempotency_key(text, uuid), public.fn_iu_trace_context(text), public.fn_iu_trace_id(uuid, text), public.fn_iu_span_id(text, text),
    public.fn_iu_trace_commit_at(xid8), public.fn_iu_metrics(text), public.fn_iu_delivery_closed_switch(text),
    public.fn_iu_delivery_enabled(), public.fn_iu_delivery_function(text), public.fn_iu_delivery_caller(regprocedure),
    public.fn_iu_delivery_queued_routes(public.iu_outbound_route[]),
    public.fn_iu_delivery_paused_by(text, boolean, boolean, timestamptz, timestamptz)
    to iu_listen_reader;
grant execute on function
    public.fn_iu_health_facts(public.iu_route_worker_cursor), public.fn_iu_health_consumer(public.iu_health_facts),
    public.fn_iu_health_progress(public.iu_health_facts, text), public.fn_iu_health_delivery(text, text),
    public.fn_iu_health_warnings(public.iu_health_facts, public.iu_route_worker_cursor),
    public.fn_iu_health_condition(public.iu_health_facts)
    to iu_listen_reader;

grant select on
    public.dot_config, public.event_type_registry, public.iu_outbound_route, public.iu_route_attempt,
    public.iu_migration, public.iu_outbox_anchor, public.iu_outbox_home, public.iu_outbox_site,
    public.iu_route_worker_cursor, public.iu_consumer_heartbeat,
    public.iu_retention_policy, public.event_outbox_event_seq, public.iu_completeness_pass, public.iu_completeness_missing,
    public.iu_trace_cursor, public.v_iu_route_attempt, public.v_iu_trace_attempt, public.v_iu_trace_dead_letter,
    public.v_iu_route_attempt_summary, public.v_iu_event_backlog, public.v_iu_route_dead_letter_open,
    public.v_iu_worker_health, public.v_iu_blocker, public.v_iu_completeness, public.v_iu_completeness_missing,
    public.v_iu_trace_lag, public.iu_delivery_change, public.iu_route_delivery, public.iu_delivery_lease,
    public.iu_delivery_breaker, public.iu_delivery_unusable, public.v_iu_delivery, public.v_iu_delivery_parked
    to iu_listen_reader;

grant select (id, event_domain, event_type, event_stream, delivery_lane, event_severity, event_subject_table,
              event_subject_ref, canonical_address, actor_ref, source_system, correlation_id, payload_classification,
              occurred_at, created_at, xact_id, event_seq, traceparent)
    on public.event_outbox to iu_listen_reader;

grant select (id, worker_name, event_ref, route_kind, route_code, idempotency_key, attempt_no, failure_code,
              failure_detail, created_at, replay_count, last_replay_at, resolved_at, resolution)
    on public.iu_route_dead_letter to iu_listen_reader;

-- Operator -----------------------------------------------------------------------------------------------

grant iu_listen_reader to iu_listen_operator;

-- For cursor site.
grant insert (site), update (seen_at, accepted_at, accepted_by) on public.iu_outbox_site to iu_listen_operator;

-- A gate is a value in dot_config. A privilege applies to all rows of a column, so an operator could also change other
-- settings there. Therefore this role is for people, not for services. It cannot add or remove keys.
grant update (value, updated_at) on public.dot_config to iu_listen_operator;

grant update (enabled, dry_run, delivery_policy) on public.iu_outbound_route to iu_listen_operator;

-- For route live and route dry.
grant execute on function
    public.fn_iu_route_live(text, boolean, text, text), public.fn_iu_delivery_problems(public.iu_outbound_route)
    to iu_listen_operator;
grant insert (route_code, live, actor, why) on public.iu_delivery_change to iu_listen_operator;

-- For route policy, route resume, delivery cancel, and replays that are queued.
grant execute on function
    public.fn_iu_breaker_after(public.iu_delivery_breaker, text, jsonb, timestamptz, bigint, boolean, double precision,
                               text, double precision),
    public.fn_iu_breaker_store(public.iu_delivery_breaker),
    public.fn_iu_route_resume(text), public.fn_iu_event_snapshot(uuid), public.fn_iu_json_exceeds(jsonb, bigint),
    public.fn_iu_delivery_cancel(text, uuid, text, text, bigint, bigint, integer),
    public.fn_iu_dead_letters_open(text, text, timestamptz, uuid, text, timestamptz, timestamptz, uuid, integer),
    public.fn_iu_dead_letters_replay(text, text, timestamptz, uuid, text, text, timestamptz, timestamptz, uuid, integer),
    public.fn_iu_dead_letters_queue(uuid[], boolean, text), public.fn_iu_dead_letters_resolve(uuid[], text, text)
    to iu_listen_operator;
-- Locking a row requires UPDATE on any one of its columns. This column is harmless: a lease holder takes a lease that
-- was given back early again.
grant update (released) on public.iu_delivery_lease to iu_listen_operator;
-- A cancelled delivery becomes a dead letter with the whole event, including its payload.
grant select on public.event_outbox to iu_listen_operator;
grant update (failure_detail) on public.iu_route_delivery to iu_listen_operator;
grant update (failures, failed_ids, opened_at, trials, trial_at, trial_id, why, dead_letters, stopped_at, lifted_at)
    on public.iu_delivery_breaker to iu_listen_operator;
grant delete, insert (route_code, worker_name, event_ref, subject_key, attempt_no, due_at, failed_at, replayed_by,
                      traceparent)
    on public.iu_route_delivery to iu_listen_operator;
grant insert (worker_name, event_ref, route_kind, route_code, idempotency_key, attempt_no, event_snapshot, failure_code,
              failure_detail, created_at)
    on public.iu_route_dead_letter to iu_listen_operator;
grant insert (route_count, batch_xact_id) on public.iu_route_attempt to iu_listen_operator;

-- A replay uses the snapshot of the event, so it reads all columns of dead letters, and writes an attempt.
grant execute on function
    public.fn_iu_route_dead_letter_replay(uuid, text), public.fn_iu_route_deliver(text, uuid, jsonb),
    public.fn_iu_route_dispatch(text, uuid, jsonb),
    public.fn_iu_dead_letter_decide(public.iu_route_dead_letter, public.iu_outbound_route, integer),
    public.fn_iu_error_of_event(text), public.fn_iu_error_of_system(text), public.fn_iu_decision_status(text)
    to iu_listen_operator;
grant select, update (attempt_no, replay_count, last_replay_at, failure_code, failure_detail, resolved_at, resolution)
    on public.iu_route_dead_letter to iu_listen_operator;
grant insert (event_ref, route_kind, route_code, status, decision, delivered, failure_code, idempotency_key, attempt_no,
              traceparent)
    on public.iu_route_attempt to iu_listen_operator;

-- For cursor reset, which changes positions; totals and the lineage stay. Only the owner can reanchor.
grant execute on function public.fn_iu_outbox_tick() to iu_listen_operator;
grant update (prev, tick, tick_floor, pos_seq, pos_id, own_xid, own_seq, hi_seq, last_created_at, last_event_id)
    on public.iu_route_worker_cursor to iu_listen_operator;

-- For audit and audit --repair. A repair gives an event a new position, and changes nothing else of the event.
grant execute on function
    public.fn_iu_completeness_page(text, integer, bigint), public.fn_iu_completeness_confirm(text),
    public.fn_iu_completeness_begin(public.iu_completeness_pass, text),
    public.fn_iu_completeness_walk(public.iu_completeness_pass, text, integer),
    public.fn_iu_completeness_scan(public.iu_completeness_pass, bigint),
    public.fn_iu_completeness_judge(public.iu_completeness_pass, bigint),
    public.fn_iu_completeness_repair(text, integer)
    to iu_listen_operator;
grant insert (worker_name),
      update (pass, started_at, pos_seq, pos_id, from_seq, until_seq, walked, checked, suspects, missing, near,
              width, codes, paged_at, finished_at, last_checked, last_seconds, scan_id, scan_until, scan_ref,
              scan_missing)
    on public.iu_completeness_pass to iu_listen_operator;
grant delete, insert (worker_name, event_ref), update (found, wanted, seen, confirmed_at, restamped_at, accepted_at)
    on public.iu_completeness_missing to iu_listen_operator;
grant update (xact_id, event_seq) on public.event_outbox to iu_listen_operator;

-- For retention policies. Changing a policy removes nothing; only the janitor removes rows.
grant update (keep, enabled, updated_at) on public.iu_retention_policy to iu_listen_operator;

-- An operator may remove a trace export. Until then the retention keeps the rows that the export has not read.
grant select (name, exported), delete on public.iu_trace_cursor to iu_listen_operator;

-- Janitor ------------------------------------------------------------------------------------------------
--
-- For `iu-listen retention run`, from a timer. The role can delete any event and the whole audit: grant it only to the
-- login of that job, never to a consumer or a person. Policies, which this role cannot change, decide which rows are
-- removed. Only the owner of event_outbox can remove partitions; this role removes rows.

grant execute on function
    public.fn_iu_lease_holders(integer, text),
    public.fn_iu_outbox_refusal(uuid, pg_snapshot),
    public.fn_iu_outbox_consumed(public.iu_route_worker_cursor, xid8, bigint, uuid),
    public.fn_iu_retention_releasable(uuid), public.fn_iu_retention_domains(timestamptz),
    public.fn_iu_retention_event_verdict(
        text, public.iu_route_worker_cursor[], timestamptz, timestamptz, xid8, bigint, uuid),
    public.fn_iu_retention_attempt_verdict(text, uuid, text),
    public.fn_iu_retention_dead_letter_verdict(text, uuid, integer, timestamptz),
    public.fn_iu_retention_run_events(integer, timestamptz, jsonb),
    public.fn_iu_retention_run_attempts(integer, timestamptz, jsonb),
    public.fn_iu_retention_run_dead_letters(integer, timestamptz, jsonb),
    public.fn_iu_retention_run(text, integer, interval, jsonb), public.fn_iu_retention_plan(interval, text[]),
    public.fn_iu_outbox_partitions(), public.fn_iu_idempotency_key(text, uuid)
    to iu_listen_janitor;

-- To check that the package is complete, and how far the cursors have read.
grant select (key) on public.dot_config to iu_listen_janitor;
grant select on public.iu_migration, public.iu_outbox_anchor, public.iu_outbox_home, public.iu_route_worker_cursor
    to iu_listen_janitor;
grant select (worker_name, event_ref, accepted_at) on public.iu_completeness_missing to iu_listen_janitor;
grant select (prev) on public.iu_trace_cursor to iu_listen_janitor;
grant select (codes) on public.iu_completeness_pass to iu_listen_janitor;
grant select (event_ref) on public.iu_route_delivery to iu_listen_janitor;
grant select (route_code) on public.iu_outbound_route to iu_listen_janitor;

-- FOR UPDATE SKIP LOCKED requires UPDATE on any one column. These columns influence no decision.
grant select (id, event_domain, created_at, xact_id, event_seq), update (traceparent), delete
    on public.event_outbox to iu_listen_janitor;
grant select (id, event_ref, route_code, idempotency_key, created_at, xact_id), update (finished_at), delete
    on public.iu_route_attempt to iu_listen_janitor;
grant select (id, event_ref, idempotency_key, attempt_no, created_at, resolved_at), update (last_replay_at), delete
    on public.iu_route_dead_letter to iu_listen_janitor;

grant select, update (last_run_at, last_gone, total_gone) on public.iu_retention_policy to iu_listen_janitor;

-- Exporter -----------------------------------------------------------------------------------------------
--
-- For the trace export, in `run` with OTEL_TRACES_EXPORTER=otlp or in `trace-export`. The role reads the columns from
-- which spans are built, without payloads, and updates the position of the export.

grant execute on function
    public.fn_iu_lease_holders(integer, text),
    public.fn_iu_outbox_refusal(uuid, pg_snapshot), public.fn_iu_outbox_tick(),
    public.fn_iu_trace_context(text), public.fn_iu_trace_commit_at(xid8),
    public.fn_iu_trace_register(text), public.fn_iu_trace_tick(text), public.fn_iu_trace_again(timestamptz),
    public.fn_iu_trace_attempts(pg_snapshot, pg_snapshot, xid8, bigint, integer),
    public.fn_iu_trace_dead_letters(pg_snapshot, pg_snapshot, xid8, uuid, integer),
    public.fn_iu_trace_accepted(text, pg_snapshot, xid8, bigint, xid8, uuid, boolean, bigint, bigint, bigint)
    to iu_listen_exporter;
grant select (key) on public.dot_config to iu_listen_exporter;
grant select (worker_name, tick, last_run_at) on public.iu_route_worker_cursor to iu_listen_exporter;
grant select on public.iu_migration, public.iu_outbox_anchor, public.iu_outbox_home, public.v_iu_trace_attempt,
    public.v_iu_trace_dead_letter
    to iu_listen_exporter;
grant select (id, xact_id, created_at) on public.iu_route_attempt, public.iu_route_dead_letter to iu_listen_exporter;
grant select, insert (name, lineage, prev),
      update (prev, tick, attempt_xid, attempt_id, dead_letter_xid, dead_letter_id, exported, rejected, ignored, last_export_at)
    on public.iu_trace_cursor to iu_listen_exporter;

commit;
