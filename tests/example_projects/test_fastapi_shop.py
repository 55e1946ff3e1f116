"""The example fastapi-shop."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime

from standardwebhooks import Webhook

from cli.command import execute, on_one_server, value
from example_projects.readme import Project, needs_curl, project
from targets.brokers import free_port

SERVICES = {"granian": "Started worker-1", "iu-listen run": "listening"}


def status(shop: Project, url: str, body: str, headers: dict[str, str] | None = None) -> int:
    """The status with which a program of the example answers a request."""
    options = " ".join(f"--header {shlex.quote(f'{name}: {text}')}" for name, text in (headers or {}).items())
    said = shop.run(f"curl --output /dev/null --write-out 'status %{{http_code}}' --json '{body}' {options} {url}")
    found = re.search(r"status (\d+)", said)
    assert found, said
    return int(found[1])


def signature(shop: Project, key: str, body: str) -> dict[str, str]:
    """The headers of the signature of a webhook, as the consumer makes it."""
    secret, now = shop.run("echo $IU_SECRET_INVOICES").strip(), datetime.now(UTC)
    signed = Webhook(secret).sign(key, now, body)
    return {"webhook-id": key, "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": signed}


@needs_curl
@on_one_server
def test_the_commands_of_the_page(empty, tmp_path):
    """An order is shipped and has an invoice; a rejected one is a dead letter, and is shipped after its replay.

    Then: a webhook without a signature is refused, repeated deliveries change nothing, and an order whose event is
    refused is not written.

    Fails when: a command is missing from the page, the event is not written or not in the transaction of the order, the
    receiver verifies no signature, or one of the two receivers does not recognize a repetition.
    """
    api, receiver = free_port(), free_port()
    with project("fastapi-shop", tmp_path, empty.dsn, {"8000": str(api), "8001": str(receiver)}) as shop:
        *page, end = shop.commands
        shop.play(page, SERVICES, repeated=("curl http", "iu-listen dead-letter list"))

        events, body, key = f"http://127.0.0.1:{receiver}/events", '{"data": {"order": 7}}', {"idempotency-key": "one"}
        assert status(shop, events, body, key) == 401
        for _ in range(2):
            assert status(shop, events, body, key | signature(shop, "one", body)) == 204
        assert "[1,2,7]" in shop.run(f"curl http://127.0.0.1:{receiver}/invoices")

        again = "asyncio.run(ship(OrderPlaced(order=1, product='lamp', quantity=2)))"
        shop.run(f'python -c "import asyncio; from shop.handlers import OrderPlaced, ship; {again}"')
        assert value(empty.dsn, "select stock from products") == 5

        execute(empty.dsn, "update event_type_registry set active = false")
        assert status(shop, f"http://127.0.0.1:{api}/orders", '{"product": "lamp", "quantity": 1}') == 500
        assert value(empty.dsn, "select count(*) from orders") == 2
        shop.play([end])


@on_one_server
def test_the_migrations(empty, tmp_path):
    """The migrations can be taken back and made again, and a generated migration would not touch iu-listen's tables.

    Fails when: the second upgrade creates the base that the downgrade has left, or autogenerate sees all tables.
    """
    ports = {"8000": str(free_port()), "8001": str(free_port())}
    with project("fastapi-shop", tmp_path, empty.dsn, ports) as shop:
        shop.run(f"export IU_LISTEN_DSN='{empty.dsn}'")
        for command in ("upgrade head", "downgrade base", "upgrade head", "check"):
            shop.run(f"alembic {command}")
        shop.run("iu-listen verify")
