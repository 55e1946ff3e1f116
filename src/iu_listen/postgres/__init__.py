"""Where it is kept. The only room that speaks to the database driver; its errors become ours at this border."""
