"""HTML that cannot be broken out of: text becomes markup only here, and escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable

from neuzip.cli.text import printable

# Written as one tag where they have no children.
VOID = frozenset({"meta", "rect", "circle", "line", "path"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(text: str) -> Markup:
    """`text` as it is to be read: names come from files of unknown origin."""
    return text if isinstance(text, Markup) else Markup(html.escape(printable(text)))


def join(children: Iterable[str]) -> Markup:
    return Markup("".join(escape(child) for child in children))


def tag(name: str, /, *children: str, **attributes: object) -> Markup:
    """An element. Attributes that are None are left out; `class_` is class, `stroke_width` stroke-width."""
    spelled = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID and not children:
        return Markup(f"<{name}{spelled}/>")
    return Markup(f"<{name}{spelled}>{join(children)}</{name}>")
