"""Sends spans to an OTLP collector.

base.py        the part that the clients for HTTP and gRPC share: settings, sizes, deadlines
http.py        the client for OTLP over HTTP
grpc.py        the client for OTLP over gRPC
factory.py     creates the client that the OTEL_* variables select
encoding.py    encodes spans as protobuf and as JSON
"""
