    -- A payload that is not JSON is kept as it is: no transaction of the application fails because of it.
    begin
        v_payload := coalesce({json}::jsonb, '{{}}');
        if jsonb_typeof(v_payload) <> 'object' then
            v_payload := jsonb_build_object('value', v_payload);
        end if;
    exception when others then
        v_payload := {other};
    end;
