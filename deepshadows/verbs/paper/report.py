"""The report of the experiments: every number beside the paper's. Text in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deepshadows.verbs import page as parts
from deepshadows.verbs.page import Html, text
from deepshadows.verbs.paper.findings import COUNTS, Number, Row, Section, Table

TITLE = "The DeepShadows experiments, repeated"


def page(sections: Sequence[Section], label: str, facts: Mapping[str, str]) -> str:
    """The whole report.

    Parameters
    ----------
    label : str
        What is to be known before any number is read: the scale.
    facts : mapping
        Samples, split, machine, versions.
    """
    intro = [
        parts.label(label),
        parts.paragraph(
            "Each number of ours stands beside that of the paper (Tanoglidis, Ćiprijanović and Drlica-Wagner 2021, "
            "arXiv:2011.12437); a dash is a number that the paper does not give. Small figures are intervals."
        ),
        parts.facts(facts),
    ]
    return parts.page(TITLE, intro, [(section.name, section.title, _content(section)) for section in sections])


def _content(section: Section) -> Html:
    skipped = parts.NOTHING if section.skipped is None else parts.paragraph(f"Skipped: {section.skipped}.")
    tables = map(_table, section.tables)
    return parts.join([skipped, *tables, *map(parts.picture, section.pictures), parts.notes(section.notes)])


def _table(table: Table) -> Html:
    measures = [number.measure for number in table.rows[0].numbers]
    wanted = any(number.target is not None for row in table.rows for number in row.numbers)
    given = [
        name
        for name in measures
        if any(row[name].paper is not None or row[name].paper_low is not None for row in table.rows)
    ]
    head = "".join(
        f'<th scope="colgroup" colspan="{1 + (name in given) + wanted}">{text(_heading(name))}</th>'
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
    inside = f"<thead><tr>{plain}{head}</tr><tr>{columns}</tr></thead>\n<tbody>\n{rows}\n</tbody>"
    caption = f"{text(table.title)} <small>({text(table.interval)})</small>"
    return parts.wide(table.title, Html(inside), Html(caption))


def _row(row: Row, given: Sequence[str], wanted: bool) -> str:
    cells = [f'<th scope="row">{text(row.name)}</th>']
    cells += [f"<td>{_whole(value)}</td>" for value in (row.n_train, row.n_test, row.epochs, row.seed)]
    for number in row.numbers:
        cells.append(f"<td>{_value(number.ours, number)}{_interval(number.low, number.high)}</td>")
        if number.measure in given:
            stated = _value(number.paper, number) + _interval(number.paper_low, number.paper_high)
            cells.append(f'<td class="paper">{stated}</td>')
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
