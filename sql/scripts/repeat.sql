do $repeat$
begin
    loop
{statement};
        exit when not found;
    end loop;
end
$repeat$
