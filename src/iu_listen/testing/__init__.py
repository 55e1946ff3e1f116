"""Tests of applications: an outbox in a database of its own, its handlers, and assertions about its events.

The plugin of pytest (``plugin.py``) provides the fixture ``iu_outbox``, which is an Outbox. docs/how-to/test.md.
"""

from iu_listen.testing.outbox import Outbox

__all__ = ["Outbox"]
