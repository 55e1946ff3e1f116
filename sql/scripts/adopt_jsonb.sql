    v_payload := case when {column} is null then '{{}}'
                      when jsonb_typeof({column}) = 'object' then {column}
                      else jsonb_build_object('value', {column}) end;
