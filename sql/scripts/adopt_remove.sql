drop trigger if exists {trigger} on {table};
drop function public.{function}();
