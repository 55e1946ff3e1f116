"""The program of another team: it receives the events of the shop as webhooks, and writes an invoice for each order."""

import json
import os
import sqlite3

from fastapi import FastAPI, Request, Response
from standardwebhooks import Webhook, WebhookVerificationError

app = FastAPI()
webhook = Webhook(os.environ["IU_SECRET_INVOICES"])
database = sqlite3.connect("invoices.db")
database.execute("create table if not exists invoices (idempotency_key text primary key, invoiced integer)")


@app.post("/events")
async def receive(request: Request) -> Response:
    """Verify the signature of the unchanged body, and write the invoice, once for each idempotency key."""
    body = await request.body()
    try:
        webhook.verify(body, dict(request.headers), json_parse=False)
    except WebhookVerificationError:
        return Response(status_code=401)
    placed = json.loads(body)["data"]
    with database:
        row = (request.headers["idempotency-key"], placed["order"])
        database.execute("insert or ignore into invoices values (?, ?)", row)
    return Response(status_code=204)


@app.get("/invoices")
async def list_invoices() -> list[int]:
    """The orders that have an invoice."""
    return [order for (order,) in database.execute("select invoiced from invoices order by invoiced")]
