-- The exact number of waiting events and of open dead letters of every worker. All of these rows are read.

select b.worker_name, b.backlog, b.oldest_created_at,
       (select count(*) from public.iu_route_dead_letter d
         where d.worker_name = b.worker_name and d.resolved_at is null) as open_dead_letters
  from public.v_iu_event_backlog b
 order by b.worker_name
