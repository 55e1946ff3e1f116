-- The traces of a probe, which must leave none: counts of its own rows, and fingerprints of everything that it touched.
--
-- $1 uuid[]  its events

select f.item, f.value
  from (values
    (1, 'worker tables', (select count(*)::text from pg_class k
                           where k.relnamespace = 'public'::regnamespace and k.relkind = 'r'
                             and k.relname in ('iu_route_worker_cursor', 'iu_route_dead_letter'))),
    (2, 'worker functions', (select count(*)::text from pg_proc p
                              where p.pronamespace = 'public'::regnamespace
                                and (p.proname like 'fn\_iu\_route\_%' or p.proname like 'fn\_iu\_outbox\_%'))),
    (3, 'event_outbox iu (of the probe)', (select count(*)::text from public.event_outbox o where o.id = any ($1))),
    (4, 'iu_route_attempt (of the probe)', (select count(*)::text from public.iu_route_attempt a
                                             where a.event_ref = any ($1))),
    (5, 'worker config key', (select count(*)::text from public.dot_config d
                               where d.key = 'iu_core.route_worker_enabled')),
    (6, 'gates', (select string_agg(d.key || '=' || coalesce(d.value, 'null'), ', ' order by d.key) from public.dot_config d
                   where d.key like 'iu\_core.%')),
    (7, 'outbound routes', (select string_agg(r.route_code || ' ' || r.enabled || '/' || r.dry_run, ', '
                                              order by r.route_code) from public.iu_outbound_route r)),
    (8, 'safety check', (select count(*)::text from pg_constraint c where c.conname = 'iu_outbound_route_safe_chk')),
    (9, 'fingerprint of functions and views',
        (select md5(string_agg(t.text, '' order by t.text))
           from (select p.oid::regprocedure::text || p.prosrc from pg_proc p where p.pronamespace = 'public'::regnamespace
                 union all
                 select v.viewname || v.definition from pg_views v where v.schemaname = 'public') t(text))),
    (10, 'fingerprint of tables, columns, triggers and indexes',
         (select md5(string_agg(t.text, '' order by t.text))
            from (select a.attrelid::regclass::text || a.attname || format_type(a.atttypid, a.atttypmod)
                    from pg_attribute a join pg_class k on k.oid = a.attrelid
                   where k.relnamespace = 'public'::regnamespace and a.attnum > 0 and not a.attisdropped
                  union all
                  select pg_get_triggerdef(g.oid) || g.tgenabled::text from pg_trigger g
                   where not g.tgisinternal) t(text)))
  ) f(n, item, value)
 order by f.n
