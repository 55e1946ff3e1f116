"""A trace as a waterfall: in the terminal, and as a self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from string import Template

from rich.text import Text

from iu_listen.cli import output
from iu_listen.cli.layout import Branch
from iu_listen.model.spans import Span
from iu_listen.model.text import visible

#: Width of the timeline in the terminal, in characters.
TIMELINE_WIDTH = 32
#: The title of the timeline's column: a blank.
TIMELINE_TITLE = " "


def tree(spans: Sequence[Span]) -> Iterator[tuple[int, Span]]:
    """Spans in the order of a tree, each with its depth; the children of a span are ordered by their start."""
    known = {span.span_id for span in spans}
    children: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda s: (s.start, s.end)):
        children.setdefault(span.parent_id if span.parent_id in known else "", []).append(span)

    def below(parent: str, depth: int) -> Iterator[tuple[int, Span]]:
        for span in children.get(parent, []):
            yield depth, span
            yield from below(span.span_id, depth + 1)

    return below("", 0)


def title(span: Span) -> str:
    """The title of a span."""
    attributes = span.attributes
    if _is_call(attributes):
        return f"call {attributes['iu.target']}"
    match attributes["messaging.operation.name"]:
        case "send":
            return f"event {attributes['iu.event.type']}"
        case "process" if attributes["iu.attempt.number"] == 1:
            return f"attempt, route {attributes['iu.route.code']}"
        case "process":
            return f"attempt {attributes['iu.attempt.number']}, route {attributes['iu.route.code']}"
        case _:
            return "dead letter"


def result(span: Span) -> str:
    """The result of the activity that a span describes."""
    attributes = span.attributes
    if _is_call(attributes):
        return str(attributes.get("error.type", "answered"))
    if span.error is not None:
        return span.error
    if attributes["messaging.operation.name"] == "send":
        return f"of {attributes['iu.event.subject']}" if attributes.get("iu.event.subject") else "written"
    return f"{attributes['iu.attempt.status']} ({attributes['iu.attempt.decision']})"


def _is_call(attributes: Mapping[str, str | int]) -> bool:
    """Whether a span is the call of an external target; the call of a coroutine has no span besides its attempt."""
    return "iu.target" in attributes and "iu.attempt.status" not in attributes


def length(nanoseconds: int) -> str:
    """A duration as text: below one second in milliseconds with one decimal."""
    if nanoseconds < 10**9:
        return f"{nanoseconds / 10**6:.1f} ms"
    return output.duration(nanoseconds / 10**9)


def time_range(spans: Sequence[Span]) -> tuple[int, int]:
    """The start of the first span, and the time until the end of the last span; both in nanoseconds."""
    began = min(span.start for span in spans)
    return began, max(max(span.end for span in spans) - began, 1)


def draw(spans: Sequence[Span]) -> None:
    """Draw the waterfall in the terminal."""
    began, whole = time_range(spans)
    rows, narrow = [], []
    for depth, span in tree(spans):
        left = min((span.start - began) * TIMELINE_WIDTH // whole, TIMELINE_WIDTH - 1)
        wide = max(1, min(TIMELINE_WIDTH - left, round((span.end - span.start) * TIMELINE_WIDTH / whole)))
        colour = "red" if span.error is not None else "cyan"
        bar = Text(" " * left + "━" * wide + " " * (TIMELINE_WIDTH - left - wide), colour, no_wrap=True)
        what = Branch("  " * (depth - 1) + "└ " * (depth > 0), visible(title(span)))
        came = Text(visible(result(span)), "red" if span.error is not None else "")
        rows.append((what, f"+{length(span.start - began)}", length(span.end - span.start), bar, came))
        below = Branch(what.prefix, f"{what.words}\n{came.plain}", str(came.style))
        narrow.append((below, *rows[-1][1:3]))
    output.table(
        ("step", "start", "duration", TIMELINE_TITLE, "result"),
        rows,
        spare=(TIMELINE_TITLE,),
        narrow=(("step", "start", "duration"), narrow),
    )
    output.note(
        f"{datetime.fromtimestamp(began / 10**9, UTC):%Y-%m-%d %H:%M:%S}Z, total {length(whole)}; "
        f"trace id {spans[0].trace_id}"
    )


HTML_ROW = """<details$bad>
<summary><span style="padding-left:${indent}rem"><b>$what</b><span class="came">$came</span></span>
<span class="time">+$begins</span><span class="time">$takes</span>
<span class="line"><span class="bar" style="left:$left%;width:$wide%"></span></span></summary>
<dl>$facts</dl></details>"""


def page(spans: Sequence[Span]) -> str:
    """The waterfall as an HTML page without scripts and without external resources."""
    began, whole = time_range(spans)
    rows = []
    for depth, span in tree(spans):
        facts = {"span id": span.span_id, "parent": span.parent_id or None} | dict(span.attributes)
        rows.append(
            Template(HTML_ROW).substitute(
                bad=' class="bad"' if span.error is not None else "",
                indent=1.2 * depth,
                what=escape(title(span)),
                came=escape(result(span)),
                begins=length(span.start - began),
                takes=length(span.end - span.start),
                left=f"{min(100 * (span.start - began) / whole, 99.5):.2f}",
                wide=f"{100 * (span.end - span.start) / whole:.2f}",
                facts="".join(
                    f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items() if v is not None
                ),
            )
        )
    event = str(spans[0].attributes["messaging.message.id"])
    template = (files("iu_listen") / "cli" / "waterfall.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=f"Event {escape(event)}",
        when=f"{datetime.fromtimestamp(began / 10**9, UTC):%Y-%m-%d %H:%M:%S}Z",
        whole=length(whole),
        trace=spans[0].trace_id,
        rows="\n".join(rows),
    )
