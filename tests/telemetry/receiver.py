"""Receivers of OTLP over HTTP and gRPC that can misbehave, and that can be stopped and started on the same port."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
#: Handles a request instead of the default: returns status, headers and body; it may keep the spans or not.
Behaviour = Callable[[ExportTraceServiceRequest], tuple[Any, dict[str, Any], bytes]]


def says(status: int, **headers: str) -> Behaviour:
    """A behaviour that always answers with this status and keeps nothing."""
    return lambda _: (status, {name.replace("_", "-"): value for name, value in headers.items()}, b"")


class Dripping:
    """Accepts any connection and sends the same bytes again and again, one at a time, with a pause after each.

    Attributes:
        open: Number of connections that are not closed yet.
    """

    def __init__(self, beginning: bytes, then: bytes, pause: float) -> None:
        self.open = 0
        self._over = False
        self._text, self._then, self._pause = beginning, then, pause
        self._server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self.open += 1
                threading.Thread(target=self._drip, args=(connection,), daemon=True).start()

    def _drip(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.sendall(self._text)
            while not self._over:
                connection.sendall(self._then)
                time.sleep(self._pause)
        self.open -= 1

    def stop(self) -> None:
        """Accept no more connections, and close the open ones."""
        self._over = True
        self._server.close()


def hangs(seconds: float) -> Behaviour:
    """A behaviour that waits for so many seconds, and then fails."""

    def behave(_: ExportTraceServiceRequest) -> tuple[int, dict[str, str], bytes]:
        time.sleep(seconds)
        return 500, {}, b""

    return behave


class Receiver:
    """Keeps every span by its id, as a backend does.

    Attributes:
        spans: The spans by hexadecimal span id; the latest one of each id.
        received: Number of received spans, repetitions included.
        requests: Path and headers of each request; ``:port`` is the port of the sender.
        resource: Attributes of the resource of the latest request.
        behaviour: Handles requests instead of the default; None: keep the spans and answer 200.
        most: Largest request that it accepts over gRPC, in bytes.
    """

    def __init__(self, port: int = 0, most: int = 4 * 2**20) -> None:
        self.most = most
        self.spans: dict[str, Any] = {}
        self.received = 0
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.resource: dict[str, Any] = {}
        self.behaviour: Behaviour | None = None
        self._server: ThreadingHTTPServer | None = None
        self._port = port
        self.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def keep(self, request: ExportTraceServiceRequest) -> None:
        """Store the spans of a request."""
        for resource in request.resource_spans:
            self.resource = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.received += 1
                    self.spans[span.span_id.hex()] = span

    def named(self, beginning: str) -> dict[str, Any]:
        """The spans whose name begins with this text."""
        return {key: span for key, span in self.spans.items() if span.name.startswith(beginning)}

    def start(self) -> None:
        """Listen on the same port as before."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # The answer is sent in one piece: with two, Nagle's algorithm delays the second by 40 ms.
            wbufsize = 2**16

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                headers = {k.lower(): v for k, v in self.headers.items()} | {":port": str(self.client_address[1])}
                receiver.requests.append((self.path, headers))
                request = ExportTraceServiceRequest.FromString(body)
                if receiver.behaviour is None:
                    receiver.keep(request)
                    status, headers, answer = 200, {}, ExportTraceServiceResponse().SerializeToString()
                else:
                    status, headers, answer = receiver.behaviour(request)
                self.send_response(status)
                for name, value in (headers | {"content-length": str(len(answer))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                self.open: list[socket.socket] = []

            def process_request(self, request: Any, address: Any) -> None:
                self.open.append(request)
                super().process_request(request, address)

            def server_close(self) -> None:
                super().server_close()
                for request in self.open:
                    with suppress(OSError):
                        request.shutdown(socket.SHUT_RDWR)

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Stop listening, and close the connections."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class GrpcReceiver(Receiver):
    """A receiver over gRPC. A behaviour returns the name of a status code, trailing metadata, and details."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen on the same port as before."""

        def export(body: bytes, context: grpc.ServicerContext) -> bytes:
            self.requests.append((METHOD, {m.key: str(m.value) for m in context.invocation_metadata()}))
            request = ExportTraceServiceRequest.FromString(body)
            if self.behaviour is None:
                self.keep(request)
                return ExportTraceServiceResponse().SerializeToString()
            code, trailing, details = self.behaviour(request)
            if code == "OK":
                return details
            context.set_trailing_metadata(tuple(trailing.items()))
            context.abort(grpc.StatusCode[code], details.decode())
            raise AssertionError

        handler = grpc.unary_unary_rpc_method_handler(export)
        service, method = METHOD[1:].split("/")
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", self.most)]
        self._grpc = grpc.server(ThreadPoolExecutor(4), options=options)
        self._grpc.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])
        self._port = self._grpc.add_insecure_port(f"127.0.0.1:{self._port}")
        self._grpc.start()

    def stop(self) -> None:
        """Stop listening, and close the connections."""
        self._grpc.stop(0).wait()
