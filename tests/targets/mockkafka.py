"""A simulated Kafka cluster: the mock of librdkafka, from the wheel of confluent-kafka, with bindings for Python.

It speaks the protocol on real ports and keeps records in memory. A broker that is down drops its connections and
accepts no new ones, and has its records when it is up again; so it is disconnected and not killed.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import files
from pathlib import Path
from typing import Any

#: Numbers from https://kafka.apache.org/protocol#protocol_error_codes and #protocol_api_keys
PRODUCE = 0
UNKNOWN_TOPIC, MESSAGE_TOO_LARGE, NOT_ENOUGH_REPLICAS, TOPIC_AUTHORIZATION, OUT_OF_ORDER = 3, 10, 19, 29, 45
PRODUCER = 0


@cache
def library() -> ctypes.CDLL:
    (path,) = (
        Path(str(f.locate())) for f in files("confluent-kafka") or () if re.match(r"librdkafka.*\.(so|dylib)", f.name)
    )
    found = ctypes.CDLL(str(path))
    for name, result, *arguments in (
        ("rd_kafka_conf_new", ctypes.c_void_p),
        ("rd_kafka_conf_set", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t),
        ("rd_kafka_new", ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t),
        ("rd_kafka_destroy", None, ctypes.c_void_p),
        ("rd_kafka_mock_cluster_new", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int),
        ("rd_kafka_mock_cluster_destroy", None, ctypes.c_void_p),
        ("rd_kafka_mock_cluster_bootstraps", ctypes.c_char_p, ctypes.c_void_p),
        ("rd_kafka_mock_topic_create", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int),
        ("rd_kafka_mock_topic_set_error", None, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int),
        ("rd_kafka_mock_broker_set_down", ctypes.c_int, ctypes.c_void_p, ctypes.c_int32),
        ("rd_kafka_mock_broker_set_up", ctypes.c_int, ctypes.c_void_p, ctypes.c_int32),
        ("rd_kafka_mock_broker_set_rtt", ctypes.c_int, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int),
        ("rd_kafka_mock_push_request_errors_array", None, ctypes.c_void_p, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(ctypes.c_int)),
    ):  # fmt: skip
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


class Cluster:
    """A mock cluster of three brokers."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.servers = library().rd_kafka_mock_cluster_bootstraps(handle).decode()

    def topic(self, name: str, partitions: int) -> None:
        assert library().rd_kafka_mock_topic_create(self._handle, name.encode(), partitions, 3) == 0

    def refuse_topic(self, name: str, code: int) -> None:
        library().rd_kafka_mock_topic_set_error(self._handle, name.encode(), code)

    def down(self, *brokers: int) -> None:
        for broker in brokers or (1, 2, 3):
            library().rd_kafka_mock_broker_set_down(self._handle, broker)

    def up(self) -> None:
        for broker in (1, 2, 3):
            library().rd_kafka_mock_broker_set_up(self._handle, broker)

    def slow(self, milliseconds: int, *brokers: int) -> None:
        for broker in brokers or (1, 2, 3):
            library().rd_kafka_mock_broker_set_rtt(self._handle, broker, milliseconds)

    def refuse(self, request: int, *codes: int) -> None:
        """Make the next requests of a kind fail with these error codes, one each."""
        array = (ctypes.c_int * len(codes))(*codes)
        library().rd_kafka_mock_push_request_errors_array(self._handle, request, len(codes), array)


@contextmanager
def cluster() -> Iterator[Cluster]:
    words = ctypes.create_string_buffer(512)
    config = library().rd_kafka_conf_new()
    library().rd_kafka_conf_set(config, b"log_level", b"0", words, len(words))
    client = library().rd_kafka_new(PRODUCER, config, words, len(words))
    assert client, words.value
    mock = library().rd_kafka_mock_cluster_new(client, 3)
    try:
        yield Cluster(mock)
    finally:
        library().rd_kafka_mock_cluster_destroy(mock)
        library().rd_kafka_destroy(client)
