-- Removes a worker that has no waiting deliveries, with its rows. No row: deliveries wait, or there is no such worker.
-- Its attempts and dead letters are kept.
--
-- $1 text  worker

with gone as (
    delete from public.iu_route_worker_cursor c
     where c.worker_name = $1
       and not exists (select from public.iu_route_delivery d where d.worker_name = $1)
    returning c.worker_name),
passes as (
    delete from public.iu_completeness_pass p using gone g where p.worker_name = g.worker_name),
missing as (
    delete from public.iu_completeness_missing m using gone g where m.worker_name = g.worker_name),
beats as (
    delete from public.iu_consumer_heartbeat h using gone g where h.worker_name = g.worker_name),
unusable as (
    delete from public.iu_delivery_unusable u using gone g where u.worker_name = g.worker_name)
select g.worker_name from gone g
