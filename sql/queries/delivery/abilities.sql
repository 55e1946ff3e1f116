-- What the installed package has that schema 1.0 lacks: the call ahead, and notifications about changes of routes and
-- switches. Where transactions can be prepared, there are no such notifications (fn_iu_ring_consumers).

select to_regprocedure('public.fn_iu_delivery_peek(text, text[])') is not null as can_peek,
       exists (select from pg_catalog.pg_trigger t
                where t.tgrelid = 'public.iu_outbound_route'::regclass and t.tgname = 'zz_iu_outbound_route_bell'
                  and t.tgenabled = 'A')
           and current_setting('max_prepared_transactions') = '0' as announces_changes
