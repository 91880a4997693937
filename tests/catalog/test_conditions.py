"""Conditions mean what SQL means, DuckDB being the judge; what is wrong is named."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pyarrow.dataset as pds
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepshadows.catalog.conditions import parse_condition
from deepshadows.catalog.partitions import catalog_schema
from deepshadows.outcomes import UsageError

SCHEMA = catalog_schema(pa.int64())
TABLE = pa.table(
    {
        "object_id": pa.array([1, 2, 3, 4, 5, 6, 7, -8], pa.int64()),
        "p_lsbg": pa.array([0.9, 0.1, None, 0.5, 1.0, None, 0.95, 0.0], pa.float32()),
        "flags": pa.array([0, 1, 131072, 3, None, 131073, 16, 0], pa.int32()),
        "unit": pa.array(["a", "b", "it's", None, "A", "a%b", "", "ab"]),
    }
)
NUMBER = st.sampled_from(["p_lsbg", "flags", "object_id"])
LITERAL = st.sampled_from(["0.9", "0.1", "1", "3", "-8", "131072", "0.5", ".95"])
SIGN = st.sampled_from(["=", "!=", "<>", "<", "<=", ">", ">="])


@st.composite
def simple(draw: st.DrawFn) -> str:
    column, value = draw(NUMBER), draw(LITERAL)
    text = draw(st.sampled_from(["'a'", "'it''s'", "''", "'ab'"]))
    whole = draw(st.sampled_from(["1", "3", "131072", "131073"]))
    return draw(
        st.sampled_from(
            [
                f"{column} {draw(SIGN)} {value}",
                f"{value} {draw(SIGN)} {column}",
                f"{column} IS NULL",
                f"{column} IS NOT NULL",
                f"{column} IN ({value}, {draw(LITERAL)})",
                f"{column} NOT IN ({value}, {draw(LITERAL)})",
                f"{column} BETWEEN {value} AND {draw(LITERAL)}",
                f"{column} NOT BETWEEN {value} AND {draw(LITERAL)}",
                f"unit {draw(SIGN)} {text}",
                f"unit IN ({text}, 'a')",
                "unit LIKE 'a%'",
                "unit NOT LIKE '_'",
                f"flags & {whole} = {whole}",
                f"(object_id + 2) * 3 - flags > {whole}",
                f"object_id / 2 < {whole}",
                "flags / object_id IS NULL",
                f"-object_id < {whole}",
                "object_id < flags",
            ]
        )
    )


CONDITION = st.recursive(
    simple(),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["AND", "OR", "and"]), inner).map(" ".join),
        inner.map("NOT ({})".format),
        inner.map("({})".format),
    ),
    max_leaves=6,
)


@given(CONDITION)
@settings(max_examples=300, deadline=None)
def test_a_condition_selects_the_rows_that_duckdb_selects(text: str) -> None:
    expected = duckdb.from_arrow(TABLE).filter(text).fetchall()
    condition = parse_condition(text, TABLE.schema)
    found = pds.dataset(TABLE).to_table(filter=condition.expression)
    assert [row["object_id"] for row in found.to_pylist()] == [row[0] for row in expected]
    if condition.ids is not None:
        assert {row["object_id"] for row in found.to_pylist()} <= condition.ids


def test_a_number_beside_a_float32_is_a_float32_however_it_is_written() -> None:
    """DuckDB takes 9e-1 for a double, of which no float32 is the same."""
    for text in ("p_lsbg = 0.9", "p_lsbg = 9e-1", "p_lsbg IN (9e-1)"):
        found = pds.dataset(TABLE).to_table(filter=parse_condition(text, TABLE.schema).expression)
        assert found["object_id"].to_pylist() == [1]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("object_id = 5", {5}),
        ("5 = object_id AND p_lsbg > 0.1", {5}),
        ("object_id IN (1, 2) AND object_id = 2", {2}),
        ("object_id = 1 OR object_id = 2", {1, 2}),
        ("object_id = 1 OR p_lsbg > 0.1", None),
        ("NOT object_id = 1", None),
        ("object_id NOT IN (1, 2)", None),
        ("object_id > 1", None),
        ("object_id + 1 = 2", None),
        ("object_id = 1.0", None),
        ("object_id IN (1, 2.5)", None),
        ("object_id = object_id", None),
    ],
)
def test_the_identifiers_that_a_row_must_have(text: str, ids: set[int] | None) -> None:
    assert parse_condition(text, SCHEMA).ids == (None if ids is None else frozenset(ids))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p_lsb > 0.9", r"there is no column p_lsb; did you mean p_lsbg\? there are _healpix_29, object_id, ra"),
        ("p_lsbg > 'a'", "p_lsbg is a number, 'a' a text: they cannot be compared"),
        ("unit > 5", "unit is a text, 5 a number"),
        ("", "the condition is empty"),
        ("   ", "the condition is empty"),
        ("p_lsbg", "p_lsbg is no condition: compare it with something"),
        ("p_lsbg > 0.9 AND ra", "ra is no condition, so it cannot stand beside AND"),
        ("NOT ra", "ra is no condition, so it cannot stand after NOT"),
        ("p_lsbg = NULL", "nothing equals NULL; write IS NULL or IS NOT NULL"),
        ("p_lsbg > ", "a column or a value is missing, after 'p_lsbg >'"),
        ("(p_lsbg > 1", r"\) is missing"),
        ("p_lsbg > 1 2", "'2' is not expected here, after 'p_lsbg > 1'"),
        ("p_lsbg > 1; DROP TABLE x", "';' is not understood, after 'p_lsbg > 1'"),
        ("p_lsbg > (SELECT 1)", "there is no column SELECT"),
        ("flags & 1.5 = 1", "1.5 is no whole number"),
        ("ra & 1 = 1", "ra is no whole number"),
        ("object_id IN (ra)", "written out"),
        ("object_id = 99999999999999999999", "larger than any 64-bit integer"),
        ("unit LIKE 5", "LIKE compares a column of texts"),
        ("p_lsbg NOT 5", "IN, BETWEEN or LIKE is missing"),
        ("(" * 1000, "more than 40 parentheses"),
        ("unit = 'open", "is not understood"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as info:
        parse_condition(text, SCHEMA)
    assert "--where" in str(info.value)


def test_a_condition_of_many_parts() -> None:
    text = " OR ".join(f"object_id = {number}" for number in range(2000))
    assert len(parse_condition(text, SCHEMA).ids or ()) == 2000
