"""A prepared incident: the consumer was absent for 95 hours, events wait, and earlier dead letters are open."""

from __future__ import annotations

ERP, MAIL, BILL = "shop.erp", "shop.mail", "shop.bill"
#: Failure codes of the dead letters; for each, its share in percent and its route.
KINDS = {"reject": (40, MAIL), "smtp_550": (40, MAIL), "target_error": (20, BILL)}

SETUP = f"""
    insert into event_type_registry (event_domain, event_type, event_stream, delivery_lane)
    values ('iu', 'order_placed', 'task', 'immediate');
    insert into iu_outbound_route
        (route_code, event_domain, event_type, event_stream, target_kind, target_ref, enabled, dry_run)
    select code, 'iu', 'order_placed', 'task', 'external_endpoint', 'https://' || code || '.example/hook', true, true
      from unnest(array['{ERP}', '{MAIL}', '{BILL}']) code;
    update dot_config set value = 'true' where key = 'iu_core.delivery_enabled';
    select fn_iu_route_live(code, true, 'the shop opens') from unnest(array['{ERP}', '{MAIL}', '{BILL}']) code;
"""

#: Dead letters: their events and attempts, settled long ago by the consumer that is now absent.
LETTERS = f"""
    with made as (
        insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, event_subject_ref, safe_payload,
                                  created_at)
        select 'iu', 'order_placed', 'task', 'immediate', md5('order ' || n %% 97)::uuid,
               jsonb_build_object('total', n), now() - interval '96 hours'
          from generate_series(1, %(letters)s) n
        returning *
    ), numbered as (
        select m.*, 100 * row_number() over () / %(letters)s as share from made m
    ), dead as (
        select n.*, case when n.share < 40 then 'reject' when n.share < 80 then 'smtp_550' else 'target_error' end as code,
               case when n.share < 80 then '{MAIL}' else '{BILL}' end as route
          from numbered n
    ), attempted as (
        insert into iu_route_attempt
            (event_ref, route_kind, route_code, status, decision, failure_code, idempotency_key, created_at)
        select d.id, 'outbound', d.route, 'failed', 'dead_letter', d.code, 'outbound:' || d.route || ':' || d.id, d.created_at
          from dead d
    )
    insert into iu_route_dead_letter
        (worker_name, event_ref, route_code, idempotency_key, event_snapshot, failure_code, failure_detail, created_at)
    select 'iu_outbound_default', d.id, d.route, 'outbound:' || d.route || ':' || d.id,
           to_jsonb(d) - 'share' - 'code' - 'route', d.code, 'address is missing', d.created_at
      from dead d;
"""
#: Moves the cursor behind all of these events.
READ = "update iu_route_worker_cursor set prev = pg_current_snapshot()"

#: One route is paused by its circuit breaker, with one event; then come events that wait for the cursor, and 95 hours
#: without a consumer.
SILENCE = f"""
    select fn_iu_route_worker_run('iu_outbound_default', 100);
    insert into iu_delivery_breaker (route_code, opened_at, trial_at, why)
    values ('{ERP}', now() - interval '95 hours', now() - interval '95 hours', 'connect');
    update iu_route_delivery set failed_at = now(), due_at = now(), failure_code = 'connect' where route_code = '{ERP}';
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, event_subject_ref, created_at)
    select 'iu', 'order_placed', 'task', 'immediate', md5('order ' || n %% 997)::uuid,
           now() - interval '95 hours' + n * interval '1 s'
      from generate_series(1, %(waiting)s) n;
    insert into iu_consumer_heartbeat
        (consumer_id, worker_name, host, pid, version, state, started_at, beat_at, cadence_seconds)
    values (gen_random_uuid(), 'iu_outbound_default', 'shop-a', 4711, '0.1.0', 'idle',
            now() - interval '9 days', now() - interval '95 hours', 5);
    update iu_route_worker_cursor set last_run_at = now() - interval '95 hours';
    update dot_config set updated_at = now() - interval '9 days';
"""

#: Inserts one event; a test also uses it in a transaction that stays open.
FORGOTTEN = "insert into event_outbox (event_domain, event_type, event_stream, delivery_lane) values ('iu', 'order_placed', 'task', 'immediate')"


def scripts(waiting: int, letters: int) -> list[str]:
    """The statements that prepare the incident, each for a separate transaction."""
    figures = {"waiting": waiting, "letters": letters}
    return [SETUP, LETTERS % figures, READ, FORGOTTEN, SILENCE % figures, "analyze"]
