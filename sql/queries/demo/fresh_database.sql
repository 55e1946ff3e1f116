-- The demo works on a database of its own, new each time. Two statements, run one by one.

drop database if exists iu_demo with (force);
create database iu_demo
