-- Whether this session listens on a channel.
--
-- $1 text  channel

select $1 = any (select pg_listening_channels())
