"""Templates, the style sheet and the script, put together into a page that stands alone."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.report import theme
from pipeline.report.style import Drawing


@dataclass(frozen=True)
class Picture:
    """A figure in the page: its SVG, and what it is called."""

    svg: Markup
    label: str


def picture(drawing: Drawing) -> Picture:
    """A drawing as it goes into the page."""
    return Picture(theme.inline(drawing), drawing.name.capitalize())


def render_page(template: str, title: str, **values: Any) -> str:
    """A whole page from one of the templates beside this module. Everything that is no markup of ours is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["words"] = _words
    script = _text("page.js")
    return environment.get_template(template).render(
        title=title,
        variables=Markup(theme.variables()),
        css=Markup(_text("page.css")),
        script=Markup(script),
        script_digest=digest(script),
        **values,
    )


def digest(script: str) -> str:
    """What a Content-Security-Policy calls this script and no other (CSP level 3, section 2.3.1)."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}"


def _words(line: str) -> Markup:
    """A command whose lines break between words, and within one only where it is longer than a line."""
    return Markup(" ").join(Markup("<span>{}</span>").format(word) for word in line.split(" "))


def _text(name: str) -> str:
    """A file beside this module."""
    return files("pipeline.report").joinpath(name).read_text(encoding="utf-8")
