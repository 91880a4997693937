"""Pages for people: one HTML file that needs nothing beside it and runs no script. Text in, text out.

Text is `str` and is escaped here; what is escaped already is `Html`, so that mypy tells the two apart.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import NewType

Html = NewType("Html", str)
NOTHING = Html("")

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Whatever the data hold: no script runs, nothing is fetched."""
_STYLE = """
:root { color-scheme: light dark; --ink: #1d1f23; --paper: #fff; --quiet: #5c6470; --line: #d9dde3; --shade: #f5f6f8;
  --accent: #2a5fa5; --warn: #fff3d6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #14171b; --quiet: #a6aeb9; --line: #343a43;
  --shade: #1f242a; --accent: #8fb8f6; --warn: #4a3a12; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 68rem; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; margin: 3rem 0 .6rem; padding-top: 1.2rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .3rem; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; padding: .5rem 1rem; background: var(--paper); }
.skip:focus { left: 1rem; top: 1rem; z-index: 1; }
.label { display: inline-block; padding: .25rem .7rem; border-radius: .3rem; background: var(--warn);
  font-weight: 600; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1rem; padding: 0; margin: 1rem 0; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
caption small { font-weight: 400; color: var(--quiet); }
th, td { padding: .32rem .65rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap;
  vertical-align: top; }
th[scope=row], .first { text-align: left; }
th[scope=row] { font-weight: 500; }
thead th { background: var(--shade); font-weight: 600; }
.text { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 12rem; }
td.paper { color: var(--quiet); }
td small { display: block; color: var(--quiet); }
figure { margin: 1.4rem 0; }
figure img { max-width: 100%; height: auto; background: #fff; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 0 1.6rem; }
.pair > * { min-width: 0; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--accent); }
figcaption, .notes, .about { color: var(--quiet); font-size: .9rem; }
dl { display: grid; align-content: start; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .15rem 1rem;
  font-size: .9rem; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
.cards { grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .6rem; margin: 1.4rem 0; }
.cards div { display: flex; flex-direction: column-reverse; justify-content: flex-end; padding: .6rem .9rem;
  border-radius: .4rem; background: var(--shade); }
.cards dd { font-size: 1.5rem; line-height: 1.25; font-weight: 600; font-variant-numeric: tabular-nums; }
.gallery { list-style: none; padding: 0; display: grid; gap: .9rem .7rem;
  grid-template-columns: repeat(auto-fill, minmax(8.3rem, 1fr)); }
.gallery a, .gallery .gone { display: block; aspect-ratio: 1; background: var(--shade); }
.gallery a .gone { text-decoration: underline; }
.gallery img { display: block; width: 100%; aspect-ratio: 1; image-rendering: pixelated; }
.gallery .gone { padding: .6rem; font-size: .78rem; color: var(--quiet); overflow: hidden; }
.gallery p { margin: .25rem 0 0; font-size: .76rem; line-height: 1.35; color: var(--quiet);
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.gallery b { color: var(--ink); font-size: .85rem; }
@media (max-width: 34rem) { body { padding: 1.2rem .8rem 3rem; } dl:not(.cards) { grid-template-columns: 1fr; }
  dl:not(.cards) dd { margin-bottom: .4rem; }
  .gallery { grid-template-columns: repeat(auto-fill, minmax(6.6rem, 1fr)); }
  .cards { grid-template-columns: 1fr 1fr; } .cards dd { font-size: 1.2rem; } }
@media print { nav, .skip { display: none; } section { break-inside: avoid-page; } }
"""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG for a page. `name` is that of its file, without the ending; `alt` says what there is to see."""

    name: str
    alt: str
    caption: str
    png: bytes = field(repr=False)


def text(words: str) -> Html:
    """Escaped, for the inside of elements and of attributes in double quotes."""
    return Html(escape(words, quote=True))


def join(parts: Iterable[Html], between: str = "\n") -> Html:
    return Html(text(between).join(part for part in parts if part))


def page(title: str, intro: Sequence[Html], sections: Sequence[tuple[str, str, Html]]) -> str:
    """A whole page.

    Parameters
    ----------
    title : str
        Of the window and of the page.
    intro : sequence of Html
        What stands before the links to the sections.
    sections : sequence of (name, title, Html)
        `name` is the anchor: letters, digits, `_`.
    """
    links = join(Html(f'<li><a href="#{text(name)}">{text(heading)}</a></li>') for name, heading, _ in sections)
    body = join(
        Html(
            f'<section id="{text(name)}" aria-labelledby="{text(name)}-title">\n'
            f'<h2 id="{text(name)}-title">{text(heading)}</h2>\n{content}\n</section>'
        )
        for name, heading, content in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header>
<h1>{text(title)}</h1>
{join(intro)}
</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main id="main" tabindex="-1">
{body}
</main>
</body>
</html>
"""


def paragraph(words: str, kind: str = "") -> Html:
    return Html(f'<p class="{text(kind)}">{text(words)}</p>' if kind else f"<p>{text(words)}</p>")


def label(words: str) -> Html:
    """What is to be known before any number is read."""
    return paragraph(words, "label")


def notes(lines: Sequence[str]) -> Html:
    if not lines:
        return NOTHING
    return Html(f'<ul class="notes">{join(Html(f"<li>{text(line)}</li>") for line in lines)}</ul>')


def facts(known: Mapping[str, str]) -> Html:
    """Names and values beside each other."""
    return Html(
        f"<dl>{join(Html(f'<dt>{text(name)}</dt><dd>{text(value)}</dd>') for name, value in known.items())}</dl>"
    )


def cards(known: Mapping[str, str]) -> Html:
    """The few numbers that matter most, large."""
    inside = (Html(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>") for name, value in known.items())
    return Html(f'<dl class="cards">{join(inside)}</dl>')


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, prose: Sequence[str] = ()) -> Html:
    """A table whose first column names the row; columns named in `prose` hold text, all others numbers."""
    kinds = [' class="text"' if name in prose else "" for name in head]
    kinds[0] = ' class="first"'
    top = "".join(f'<th scope="col"{kind}>{text(name)}</th>' for name, kind in zip(head, kinds, strict=True))
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td{kind}>{text(cell)}</td>" for cell, kind in zip(rest, kinds[1:], strict=True))
        lines.append(Html(f'<tr><th scope="row">{text(first)}</th>{cells}</tr>'))
    return wide(caption, Html(f"<thead><tr>{top}</tr></thead>\n<tbody>\n{join(lines)}\n</tbody>"), text(caption))


def wide(name: str, inside: Html, caption: Html) -> Html:
    """A table that scrolls by itself on a narrow screen, by the keyboard too."""
    return Html(
        f'<div class="wide" role="region" aria-label="{text(name)}" tabindex="0"><table>\n'
        f"<caption>{caption}</caption>\n{inside}</table></div>"
    )


def pair(parts: Iterable[Html]) -> Html:
    """Side by side where there is room, below each other where there is not."""
    return Html(f'<div class="pair">\n{join(parts)}\n</div>')


def folded(summary: str, inside: Html) -> Html:
    """Shown when asked for."""
    return Html(f"<details><summary>{text(summary)}</summary>\n{inside}\n</details>")


def picture(shown: Picture) -> Html:
    return Html(
        f'<figure><img src="{data_url(shown.png)}" alt="{text(shown.alt)}">'
        f"<figcaption>{text(shown.caption)}</figcaption></figure>"
    )


def data_url(png: bytes) -> Html:
    return Html("data:image/png;base64," + base64.b64encode(png).decode("ascii"))
