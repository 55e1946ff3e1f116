-- Lets the number of refused events begin at 0.

select setval('public.iu_emit_refused_seq', 1, false)
