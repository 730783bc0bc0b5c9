"""Reads docstrings as this project writes them: `name: what it is.` for a parameter, `Raises A, B.` for errors."""

from __future__ import annotations

import re
from typing import Any

import griffe


class HouseStyle(griffe.Extension):
    """Makes a list of the parameters and attributes that a docstring explains, and of the errors it names."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        rewrite(func, [parameter.name for parameter in func.parameters])

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        names = [name for name, member in cls.members.items() if member.is_attribute]
        made = cls.members.get("__init__")
        if isinstance(made, griffe.Function):
            names += [parameter.name for parameter in made.parameters]
        rewrite(cls, names)


def rewrite(item: griffe.Object, names: list[str]) -> None:
    if item.docstring is not None:
        item.docstring.value = as_markdown(item.docstring.value, [name for name in names if name != "self"])


def as_markdown(text: str, names: list[str]) -> str:
    """Paragraph by paragraph; what is raised is one of its own."""
    text = re.sub(r":(?:class|func|meth|mod):`~?([^`]+)`", r"`\1`", text)
    text = re.sub(r"(?<=[.:]) *\n?(?=Raises [A-Z])", "\n\n", text)
    return "\n\n".join(explain(paragraph, names) for paragraph in text.split("\n\n"))


def explain(paragraph: str, names: list[str]) -> str:
    """An explanation begins the paragraph or follows a full stop; it ends where the next one begins."""
    if "\n " not in paragraph:  # no list or code
        paragraph = paragraph.replace("\n", " ")
    if paragraph.startswith("Raises "):
        return f"**Raises** {paragraph.removeprefix('Raises ')}"
    if not names:
        return paragraph
    spelled = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    start = rf"(?:(?<=\. )|^)((?:{spelled})(?:, (?:{spelled}))*): "
    before, *found = re.split(start, paragraph)
    if not found:
        return paragraph
    pairs = zip(found[::2], found[1::2], strict=True)
    items = [f"- {', '.join(f'`{name}`' for name in keys.split(', '))}: {value}" for keys, value in pairs]
    return "\n".join(([before, ""] if before.strip() else []) + items)
