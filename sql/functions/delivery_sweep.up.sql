-- The sweep: finds deliveries that the position of their route has passed and that may go on.
--
-- fn_iu_delivery_take reads deliveries that were never attempted by their ids, from a position that only goes
-- forward. Three kinds of deliveries lie before it:
--
--   kind of delivery                            how it is found
--   it waits for an earlier one of its subject  the consumer asks for its subject when it has settled the earlier one
--   it waited for an earlier one that a cancel  the sweep: the first delivery of each subject
--   or another worker has ended
--   the position passed it unread, because      the sweep: the first delivery of each subject, and deliveries that
--   nearly all rows around it waited            have no subject
--
-- The first deliveries of subjects are found by a loose index scan: one search of (route_code, subject_key, id) for
-- each subject, however many deliveries wait behind it. Deliveries without a subject are not in that index; they are
-- found by id, once after the position has passed rows unread.
--
-- Each call reads a bounded part and answers where the next call continues: at most 500 subjects, for a few
-- milliseconds. Deleted rows that vacuum cannot remove yet are read as well, and a LIMIT does not count them. Therefore
-- one thousandth of all keys (they are hashes) is searched first, then four times as many, and so on; ids are searched
-- in parts of 10 000; and the elapsed time is checked between two parts.
--
-- kind: repeatable
-- needs: 012
-- locks: nothing that other sessions use

create or replace function public.fn_iu_delivery_sweep(
    p_worker_name text, p_route_code text, p_key bigint, p_position bigint, out keys bigint[], out key bigint)
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
    v_last  constant bigint := 9223372036854775807;
    v_until constant timestamptz := clock_timestamp() + interval '5 milliseconds';
    v_part  numeric := 2 ^ 54;
    v_end   bigint;
    v_left  integer := 500;
    v_heads bigint;
    v_key   bigint;
    v_free  bigint[];
begin
    key := p_key;
    keys := '{}';
    while key is not null and v_left > 0 and clock_timestamp() < v_until loop
        v_end := least(key + v_part, v_last);
        v_part := v_part * 4;
        with recursive head as (
            (select d.subject_key, d.id, d.worker_name, d.due_at
               from public.iu_route_delivery d
              where d.route_code = p_route_code and d.subject_key between key and v_end
              order by d.subject_key, d.id
              limit 1)
            union all
            select n.*
              from head h
             cross join lateral (
                   select d.subject_key, d.id, d.worker_name, d.due_at
                     from public.iu_route_delivery d
                    where d.route_code = p_route_code and d.subject_key > h.subject_key and d.subject_key <= v_end
                    order by d.subject_key, d.id
                    limit 1) n
        )
        select count(*), max(h.subject_key),
               array_agg(h.subject_key) filter (where h.worker_name = p_worker_name
                                                  and (h.due_at = 'infinity' or h.due_at is null and h.id <= p_position))
          into v_heads, v_key, v_free
          from (select x.* from head x limit v_left) h;
        keys := keys || coalesce(v_free, '{}');
        key := nullif(case when v_heads = v_left then v_key else v_end end, v_last) + 1;
        v_left := v_left - v_heads;
    end loop;
end
$$;
comment on function public.fn_iu_delivery_sweep(text, text, bigint, bigint) is
    'Subjects of a route, from p_key on, whose first delivery may go on and is not beyond the position p_position; and '
    'the key from which the next call continues (null: all subjects were searched).';

create or replace function public.fn_iu_delivery_seek(
    p_worker_name text, p_route_code text, p_behind bigint, p_position bigint, out first bigint, out behind bigint)
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
    v_until constant timestamptz := clock_timestamp() + interval '5 milliseconds';
    v_end   bigint;
begin
    behind := p_behind;
    while behind is not null and clock_timestamp() < v_until loop
        v_end := least(behind + 10000, p_position);
        select min(d.id) into first
          from public.iu_route_delivery d
         where d.route_code = p_route_code and d.id > behind and d.id <= v_end
           and d.subject_key is null and d.due_at is null and d.worker_name = p_worker_name;
        behind := case when first is null and v_end < p_position then v_end end;
    end loop;
end
$$;
comment on function public.fn_iu_delivery_seek(text, text, bigint, bigint) is
    'The first delivery of a route that has no subject and was never attempted, beyond p_behind and up to the '
    'position p_position; and the id beyond which the next call continues (null: one was found, or there is none).';
