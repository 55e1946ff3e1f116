-- Whether the installed package has the call ahead, which schema 1.0 lacks.

select to_regprocedure('public.fn_iu_delivery_peek(text, text[])') is not null
