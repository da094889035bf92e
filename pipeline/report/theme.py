"""One palette for the page and its figures, in light and dark: figures are drawn once and take their colours from CSS.

matplotlib writes colours as hexadecimal numbers; in the page each becomes a CSS variable, so that the figure follows
the theme of the reader. Print and the PNG files are light.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.report.style import Drawing

PIXELS_PER_INCH = 97


@dataclass(frozen=True)
class Tint:
    """A colour by its CSS variable: as figures are drawn, and in the dark."""

    name: str
    light: str
    dark: str


PALETTE = (
    Tint("paper", "#ffffff", "#14191d"),
    Tint("ink", "#1f2933", "#e6eaed"),
    Tint("muted", "#5b6770", "#aab5bd"),
    Tint("faint", "#a9b4bd", "#66737d"),
    Tint("grid", "#e3e8ec", "#2c353c"),
    Tint("blue", "#0072b2", "#5bb4ec"),
    Tint("orange", "#c44e00", "#f4905a"),
    Tint("green", "#00805c", "#3fc79a"),
    Tint("purple", "#a2568b", "#d98fc4"),
    Tint("gold", "#b8860b", "#dcb04a"),
    Tint("sky", "#3a9bd1", "#8fd0f5"),
    Tint("grey", "#4d4d4d", "#c4c4c4"),
    Tint("brown", "#7a5230", "#c79a73"),
)
_EXTRA = (
    Tint("wash", "#f4f6f8", "#1d2429"),
    Tint("line", "#d9e0e5", "#36414a"),
    Tint("up", "#00603f", "#63d6ab"),
    Tint("up-wash", "#e2f3ec", "#12372b"),
    Tint("down", "#943800", "#f7a173"),
    Tint("down-wash", "#fbe9df", "#40240f"),
)
_NAMES = {tint.light: tint.name for tint in PALETTE} | {"#000000": "ink"}
_HEAD = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_DROPPED = re.compile(r"<!--.*?-->|<metadata>.*?</metadata>|<style[^>]*>.*?</style>", re.DOTALL)
_OPENING = re.compile(r"<svg[^>]*?viewBox=\"([^\"]*)\"[^>]*>", re.DOTALL)
_NAMED = re.compile(r"(\bid=\"|href=\"#|url\(#)")
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_SPACE = re.compile(r"\s*\n\s*")


def variables() -> str:
    """The CSS variables: light, and dark on a screen whose reader asks for it."""

    def block(theme: str) -> str:
        return " ".join(f"--{tint.name}: {getattr(tint, theme)};" for tint in (*PALETTE, *_EXTRA))

    dark = f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {block('dark')} }} }}"
    return f":root {{ {block('light')} }}\n{dark}"


def inline(drawing: Drawing) -> Markup:
    """The figure as SVG inside the page: named for those who cannot see it, in colours of the theme.

    Names inside it are made its own, as several figures share one document. All text in it is drawn as paths, and
    comments are dropped: nothing that a class or a run is called can become markup.
    """
    text = _DROPPED.sub("", _HEAD.sub("", drawing.svg.decode()))
    text = _NAMED.sub(rf"\g<1>{drawing.name}-", text)
    text = _COLOUR.sub(lambda found: f"var(--{_NAMES[found[0]]})" if found[0] in _NAMES else found[0], text)
    head = Markup('<svg viewBox="{}" role="img" aria-label="{}" style="max-width: {}px">')
    box = found[1] if (found := _OPENING.search(text)) else "0 0 1 1"
    opening = head.format(box, drawing.alternative, round(drawing.inches * PIXELS_PER_INCH))
    # A figure's text is markup of our own making; see above.
    return opening + Markup(_SPACE.sub("\n", _OPENING.sub("", text, count=1)).strip())
