-- The rows that a run would delete now, and the reasons why other old rows stay.
--
-- $1 text  interval that overrides the policies; null: none     $2 text[]  policies; null: all

select p.what, p.verdict, p.who, p.count, p.oldest, p.youngest
  from public.fn_iu_retention_plan($1::text::interval, $2::text[]) p
