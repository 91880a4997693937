"""The report: one HTML file that needs nothing beside it and runs no script. Text in, text out."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from deepshadows.verbs.paper.findings import COUNTS, Number, Picture, Row, Section, Table

TITLE = "The DeepShadows experiments, repeated"
_STYLE = """
:root { --ink: #1d1f23; --quiet: #5c6470; --line: #d9dde3; --shade: #f5f6f8; --accent: #2a5fa5; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 68rem; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .6rem; padding-top: 1.2rem; border-top: 1px solid var(--line); }
.label { display: inline-block; padding: .25rem .7rem; border-radius: .3rem; background: #fff3d6; font-weight: 600; }
nav a { margin-right: 1rem; white-space: nowrap; color: var(--accent); }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
caption small { font-weight: 400; color: var(--quiet); }
th, td { padding: .32rem .65rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th[scope=row] { text-align: left; font-weight: 500; }
thead th { background: var(--shade); font-weight: 600; }
td.paper { color: var(--quiet); }
td small { display: block; color: var(--quiet); }
figure { margin: 1.4rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption, .notes { color: var(--quiet); font-size: .9rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; font-size: .9rem; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
"""


def page(sections: Sequence[Section], label: str, facts: Mapping[str, str]) -> str:
    """The whole report.

    Parameters
    ----------
    label : str
        What is to be known before any number is read: the scale.
    facts : mapping
        Samples, split, machine, versions.
    """
    links = " ".join(f'<a href="#{section.name}">{escape(section.title)}</a>' for section in sections)
    known = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    body = "\n".join(_section(section) for section in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(TITLE)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(TITLE)}</h1>
<p class="label">{escape(label)}</p>
<p>Each number of ours stands beside that of the paper (Tanoglidis, Ćiprijanović and Drlica-Wagner 2021,
arXiv:2011.12437); a dash is a number that the paper does not give. Small figures are intervals.</p>
<dl>{known}</dl>
<nav>{links}</nav>
{body}
</body>
</html>
"""


def _section(section: Section) -> str:
    parts = [f'<section id="{section.name}">', f"<h2>{escape(section.title)}</h2>"]
    if section.skipped is not None:
        parts.append(f"<p>Skipped: {escape(section.skipped)}.</p>")
    parts += [_table(table) for table in section.tables]
    parts += [_picture(picture) for picture in section.pictures]
    if section.notes:
        notes = "".join(f"<li>{escape(note)}</li>" for note in section.notes)
        parts.append(f'<ul class="notes">{notes}</ul>')
    return "\n".join([*parts, "</section>"])


def _table(table: Table) -> str:
    measures = [number.measure for number in table.rows[0].numbers]
    wanted = any(number.target is not None for row in table.rows for number in row.numbers)
    given = [
        name
        for name in measures
        if any(row[name].paper is not None or row[name].paper_low is not None for row in table.rows)
    ]
    head = "".join(
        f'<th scope="colgroup" colspan="{1 + (name in given) + wanted}">{escape(_heading(name))}</th>'
        for name in measures
    )
    columns = "".join(
        '<th scope="col">here</th>'
        + ('<th scope="col">paper</th>' if name in given else "")
        + ('<th scope="col">target</th>' if wanted else "")
        for name in measures
    )
    plain = "".join(f'<th scope="col" rowspan="2">{name}</th>' for name in ("", "n train", "n test", "epochs", "seed"))
    rows = "\n".join(_row(row, given, wanted) for row in table.rows)
    return f"""<div class="wide"><table>
<caption>{escape(table.title)} <small>({escape(table.interval)})</small></caption>
<thead><tr>{plain}{head}</tr><tr>{columns}</tr></thead>
<tbody>
{rows}
</tbody></table></div>"""


def _row(row: Row, given: Sequence[str], wanted: bool) -> str:
    cells = [f'<th scope="row">{escape(row.name)}</th>']
    cells += [f"<td>{_whole(value)}</td>" for value in (row.n_train, row.n_test, row.epochs, row.seed)]
    for number in row.numbers:
        cells.append(f"<td>{_value(number.ours, number)}{_interval(number.low, number.high)}</td>")
        if number.measure in given:
            text = _value(number.paper, number) + _interval(number.paper_low, number.paper_high)
            cells.append(f'<td class="paper">{text}</td>')
        if wanted:
            met = number.target is not None and number.ours is not None and number.ours >= number.target
            mark = "" if number.target is None else " met" if met else " missed"
            cells.append(f'<td class="paper">{_value(number.target, number)}{mark}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _heading(measure: str) -> str:
    return measure.upper() if measure == "auc" or measure in COUNTS else measure


def _whole(value: int | None) -> str:
    return "–" if value is None else f"{value:,}" if value >= 10_000 else str(value)


def _value(value: float | int | None, number: Number) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if number.measure in COUNTS else f"{value:.3f}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"<small>{low:.3f}–{high:.3f}</small>"


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(picture.alt, quote=True)}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )
