"""Webhooks: the entry point ``open`` of the schemes http and https.

target.py     the target: the request of a delivery, and the outcome of its answer
options.py    the options of a route: allowed values, and the settings that result from them
pool.py       a pool of connections to one origin; their interface
http1.py      connections of HTTP/1.1
http2.py      connections of HTTP/2
backend.py    opens connections, only to addresses that were checked
"""

from __future__ import annotations

from iu_listen.targets.http.target import open as open

__all__ = ["open"]
