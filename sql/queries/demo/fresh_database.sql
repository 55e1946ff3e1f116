-- Creates the demo's own database anew. There are two statements, executed one by one.

drop database if exists iu_demo with (force);
create database iu_demo
