"""Tests of applications: an outbox in a database of its own, its handlers, and assertions about its events.

The plugin of pytest (``plugin.py``) provides the fixture ``iu_outbox``, which is an ``outbox.Outbox``:
docs/how-to/test.md. The package imports nothing, because pytest loads the plugin wherever iu-listen is installed.
"""
