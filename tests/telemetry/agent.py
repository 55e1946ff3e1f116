"""An independent OTLP receiver (ddapm-test-agent, in a separate environment), and the spans that it has received."""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

PROGRAM = Path(__file__).parents[2] / ".venv-agent/bin/ddapm-test-agent"


class Agent:
    """A running agent.

    Attributes:
        http: Its endpoint for OTLP over HTTP.
        grpc: Its endpoint for OTLP over gRPC.
    """

    def __init__(self, http: int, grpc: int) -> None:
        self.http = f"http://127.0.0.1:{http}"
        self.grpc = f"http://127.0.0.1:{grpc}"

    def environment(self, protocol: str) -> dict[str, str]:
        """Environment variables that send traces to this agent."""
        endpoint = self.grpc if protocol == "grpc" else self.http
        return {
            "OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "OTEL_BSP_SCHEDULE_DELAY": "100",
        }  # fmt: skip

    def spans(self) -> list[Any]:
        """Every span that it has received, as protobuf."""
        with urllib.request.urlopen(f"{self.http}/test/session/traces") as answer:
            requests = [ParseDict(request, ExportTraceServiceRequest()) for request in json.load(answer)]
        return [
            s for r in requests for resource in r.resource_spans for scope in resource.scope_spans for s in scope.spans
        ]


def free_ports(count: int) -> list[int]:
    """Free ports."""
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in taken]
    for server in taken:
        server.close()
    return ports


@contextmanager
def agent() -> Iterator[Agent]:
    """Run an agent for the length of a block; skip the test if it is not installed (make test installs it)."""
    if not PROGRAM.exists():
        pytest.skip("there is no .venv-agent: make test makes it")
    port, http, grpc = free_ports(3)
    with tempfile.TemporaryDirectory(prefix="iu-agent-") as home:
        process = subprocess.Popen(
            [PROGRAM, "--port", str(port), "--otlp-http-port", str(http), "--otlp-grpc-port", str(grpc),
             "--snapshot-dir", home, "--disable-llmobs-data-forwarding"],
            cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/info").close()
                    break
                except OSError:
                    assert process.poll() is None, "it ended"
                    assert time.monotonic() < deadline, "it does not answer"
                    time.sleep(0.05)
            yield Agent(http, grpc)
        finally:
            process.terminate()
            process.wait(10)
