"""The reports of a run: in the terminal, as a page of HTML with plots, and as a page of the documentation."""

from suite.report.html import html
from suite.report.run import Run
from suite.report.text import markdown, to_terminal

__all__ = ["Run", "html", "markdown", "to_terminal"]
