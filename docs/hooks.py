"""What pages take from elsewhere in the repository, so that nothing is written twice.

In a page, a line `<!-- include FILE -->` or `<!-- include FILE # HEADING -->` is replaced by a file or one of its
sections, `<!-- commands -->` by the help of the command line, and `<!-- results -->` by the benchmarks' tables.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from markdown.extensions.toc import slugify
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
# Where on the site a file of the repository is; others are named without a link.
PAGES = {
    "formats/spec.md": "format.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "bench/results": "benchmarks.md",
    "docs/kernels.md": "kernels.md",
    "docs/guide/training.md": "guide/training.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the benchmarks' plots."""
    for path in sorted(RESULTS.glob("*.png")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    depth = page.file.src_uri.count("/")
    markdown = re.sub(
        r"^<!-- include (\S+?)(?: # (.+?))? -->$",
        lambda found: include(found[1], found[2], depth),
        markdown,
        flags=re.MULTILINE,
    )
    if "<!-- commands -->" in markdown:
        markdown = markdown.replace("<!-- commands -->", commands())
    if "<!-- results -->" in markdown:
        markdown = markdown.replace("<!-- results -->", results())
    return markdown


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Sections of the format, cited as `§4.2`, become links."""
    if page.file.src_uri in ("format.md", "contributing.md", "changelog.md"):
        return html
    prefix = "../" * (page.url.count("/"))
    return re.sub(
        r"§(\d+(?:\.\d+)?)",
        lambda found: (
            f'<a href="{prefix}format/#{SECTIONS[found[1]]}">§{found[1]}</a>'
            if found[1] in SECTIONS
            else found[0]
        ),
        html,
    )


def include(name: str, heading: str | None, depth: int) -> str:
    text = (ROOT / name).read_text(encoding="utf-8")
    if heading is not None:
        found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        if found is None:
            raise ValueError(f"{name} has no section {heading!r}")
        text = found[1]
    return re.sub(r"\[([^\]]+)\]\((?!https?:|#)([^)]+)\)", lambda link: relink(name, link, depth), text)


def relink(name: str, link: re.Match[str], depth: int) -> str:
    target = (Path(name).parent / link[2]).as_posix()
    if target in PAGES:
        return f"[{link[1]}]({'../' * depth}{PAGES[target]})"
    return f"`{link[1]}`"


def sections() -> dict[str, str]:
    """The numbers of the format's sections, and their anchors on its page."""
    text = (ROOT / "formats/spec.md").read_text(encoding="utf-8")
    titles = re.findall(r"^##+ ((\d+(?:\.\d+)?)\.? .+)$", text, re.MULTILINE)
    return {number: slugify(title, "-") for title, number in titles}


def commands() -> str:
    """The commands' help, as the program prints it."""
    import click

    from neuzip.cli.main import program

    parts = []
    with click.Context(program, info_name="neuzip") as parent:
        for name in program.list_commands(parent):
            command = program.get_command(parent, name)
            with click.Context(command, info_name=name, parent=parent, max_content_width=88) as context:
                parts.append(f"## {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def results() -> str:
    """The tables of every run in bench/results, by the benchmarks' own code."""
    sys.path.insert(0, str(RESULTS.parent))
    try:
        from results import from_json
        from table import markdown
    finally:
        sys.path.pop(0)
    runs = [from_json(path) for path in sorted(RESULTS.glob("*.json"))]
    return "\n\n".join(f"## {run.machine}\n\n{markdown(run, 'results/ratio_speed.png')}" for run in runs)


SECTIONS = sections()
