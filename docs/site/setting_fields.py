"""An extension of griffe, which reads the docstrings: the fields of Settings with their defaults, ranges and meanings.

Each field is a call, ``_setting(default, meaning, low, high, choices=…)``.
"""

from __future__ import annotations

import ast
from typing import Any

from griffe import Class, ExprCall, ExprKeyword, Extension


class SettingFields(Extension):
    """Gives the class a section of attributes, and each attribute its default as value."""

    def on_class_members(self, *, cls: Class, **_: Any) -> None:
        """Change a class, if its attributes are such calls."""
        lines = []
        for name, attribute in cls.attributes.items():
            call = attribute.value
            if isinstance(call, ExprCall) and str(call.function) == "_setting":
                named = {a.name: a.value for a in call.arguments if isinstance(a, ExprKeyword)}
                default, meaning, *limits = (a for a in call.arguments if not isinstance(a, ExprKeyword))
                words = [ast.literal_eval(str(meaning))]
                words += [f"From {limits[0]} to {limits[1]}."] if limits else []
                words += [f"Choices: {str(named['choices']).strip('()')}."] if "choices" in named else []
                lines.append(f"    {name}: {' '.join(words)}")
                attribute.value = default
        if lines and cls.docstring:
            cls.docstring.value += "\n\nAttributes:\n" + "\n".join(lines)
