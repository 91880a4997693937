"""`evaluate --catalog`: completeness by brightness and size, purity, within the sky that truth and catalogue share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from astropy.coordinates import SkyCoord
from PIL import Image

from deepshadows import storage
from deepshadows.catalog.collection import partitions_of
from deepshadows.catalog.healpix import Partition, spatial_index
from deepshadows.outcomes import InputError, Summary, UsageError
from deepshadows.schema import Flag
from deepshadows.settings import Evaluate, Publish
from deepshadows.verbs import evaluate, publish
from deepshadows.verbs.against_truth import Comparison, read_truth
from tests.catalog.finished_runs import rows, write_run

SECOND = 1 / 3600
PLACES = ((0.0, 0.0), (120.0, 89.995), (200.0, -40.0))
"""Where ra wraps, near the pole, and elsewhere."""


ROWS = 100


def neighbourhood(ra: float, dec: float) -> tuple[np.ndarray, np.ndarray]:
    """A hundred positions 30 arcsec apart around a place, degrees."""
    east, north = (grid.ravel() * 30 * SECOND for grid in np.meshgrid(np.arange(-5, 5), np.arange(-5, 5)))
    frame = SkyCoord(ra, dec, unit="deg").skyoffset_frame()
    spots = SkyCoord(east, north, unit="deg", frame=frame).icrs
    return np.asarray(spots.ra.deg) % 360, np.asarray(spots.dec.deg)


def scored(number: int) -> pa.Table:
    """A unit of one place: rows 0-9 score 0.9, 10-19 score 0.4, 20-29 score 0.8, the others 0.1."""
    table = rows(range(number * ROWS, (number + 1) * ROWS), *neighbourhood(*PLACES[number]))
    p = np.full(ROWS, 0.1, np.float32)
    p[:10], p[10:20], p[20:30] = 0.9, 0.4, 0.8
    return table.set_column(4, table.schema.field("p_lsbg"), pa.array(p))


def lsbgs(number: int, *, off_arcsec: float = 0.6) -> pa.Table:
    """The truth of one place: rows 0-19 are LSBGs, and four more that nobody detected; a star is no LSBG."""
    ra, dec = neighbourhood(*PLACES[number])
    chosen = [*range(20), 40, 41, 42, 43, 50]
    north = np.where(np.array(chosen) >= 40, 12.0, off_arcsec) * SECOND
    mu = np.where(np.arange(25) < 10, 24.7, 25.2)
    label = np.ones(25, np.int8)
    label[-1] = 0
    return pa.table(
        {
            "ra": ra[chosen],
            "dec": dec[chosen] - north,
            "label": label,
            "mu_eff_g": mu.astype(np.float32),
            "r_eff_arcsec": np.full(25, 3.0, np.float32),
            "mag_g": pa.array(np.where(np.arange(25) < 5, np.nan, 20.3).astype(np.float32), from_pandas=True),
        }
    )


@pytest.fixture(scope="module")
def catalog(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three places far from each other, each in a partition of its own."""
    folder = tmp_path_factory.mktemp("three")
    run = write_run(str(folder / "run"), [scored(number) for number in range(3)])
    publish.run(Publish(run=(run,), catalog=str(folder / "cat"), partition_rows=ROWS))
    return str(folder / "cat")


def judged(catalog: str, truth: pa.Table, place: Path, **settings: object) -> Summary:
    storage.write_table(str(place / "truth.parquet"), truth)
    return evaluate.run(Evaluate(catalog=catalog, truth=str(place / "truth.parquet"), **settings))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_same_everywhere_on_the_sky(catalog: str, tmp_path: Path, number: int) -> None:
    summary = judged(catalog, lsbgs(number), tmp_path)
    figures = summary.figures
    assert [figures[name] for name in ("tp", "fp", "fn", "tn")] == [10, 10, 14, 70]
    assert (figures["truth_lsbg"], figures["truth_lsbg_detected"], figures["rows"]) == (24, 20, 100)
    assert (figures["completeness"], figures["purity"]) == (pytest.approx(10 / 24), 0.5)
    assert (figures["completeness_lo"], figures["completeness_hi"]) == pytest.approx((0.2447, 0.6117), abs=1e-4)
    assert (figures["purity_lo"], figures["purity_hi"]) == pytest.approx((0.2993, 0.7007), abs=1e-4)
    by_mu = figures["completeness_by_mu_eff_g"]
    assert [(one["low"], one["n"], one["detected"], one["selected"]) for one in by_mu] == [
        (24.5, 10, 10, 10),
        (25.0, 14, 10, 0),
    ]
    assert (by_mu[0]["completeness"], by_mu[0]["completeness_lo"]) == (1.0, pytest.approx(0.7225, abs=1e-4))
    assert [one["n"] for one in figures["completeness_by_r_eff_arcsec"]] == [24]
    assert [one["n"] for one in figures["completeness_by_mag_g"]] == [19]
    assert any("Wilson" in line for line in summary.text)
    assert "5 LSBGs have no mag_g" in summary.text
    assert any("p_lsbg >= 0.5" in line for line in summary.text)


def test_a_prevalence_is_the_share_among_detections(catalog: str, tmp_path: Path) -> None:
    """Of 100 detections 20 are LSBGs: at that prevalence the purity is that of the rows."""
    figures = judged(catalog, lsbgs(0), tmp_path, threshold=0.5, prevalence=0.2).figures
    assert figures["purity_at_prevalence"] == figures["purity"] == pytest.approx(0.5)
    assert figures["accuracy_at_prevalence"] == pytest.approx(0.8)
    chosen = judged(catalog, lsbgs(0), tmp_path, purity=0.66, prevalence=0.2).figures
    assert chosen["threshold"] == pytest.approx(0.4)  # 20 LSBGs and 10 artifacts


def test_only_partitions_near_the_truth_are_read(catalog: str, tmp_path: Path) -> None:
    """The others may be damaged."""
    copy = tmp_path / "cat"
    shutil.copytree(catalog, copy)
    table = str(copy / "v0001" / "cat")
    at = spatial_index(np.array([200.0]), np.array([-40.0]))
    far = [part for part in partitions_of(table) if partition_of(part, at)]
    others = [part for part in partitions_of(table) if part not in far]
    assert len(far) == 1
    for number, part in enumerate(others):
        (copy / "v0001" / "cat" / part.path).write_bytes(b"damaged" * number)
    summary = judged(str(copy), lsbgs(2), tmp_path)
    assert summary.figures["tp"] == 10
    assert summary.text[0] == f"1 of {len(others) + 1} partitions were read"
    with pytest.raises(InputError, match="not a readable Parquet file"):
        judged(str(copy), lsbgs(0), tmp_path)


def partition_of(part: Partition, index: np.ndarray) -> bool:
    return bool((index >> 2 * (29 - part.order) == part.pixel)[0])


def test_what_only_one_of_the_two_covers_is_not_judged(catalog: str, tmp_path: Path) -> None:
    """LSBGs where there are no rows are not lost, rows where there is no truth are no artifacts."""
    far = lsbgs(0).set_column(0, "ra", pa.array(np.full(25, 77.0)))
    summary = judged(catalog, pa.concat_tables([lsbgs(0), far]), tmp_path)
    assert [summary.figures[name] for name in ("tp", "fp", "fn", "tn")] == [10, 10, 14, 70]
    assert summary.figures["truth_lsbg_outside"] == 24
    both = judged(catalog, pa.concat_tables([lsbgs(0), lsbgs(1)]), tmp_path)
    assert [both.figures[name] for name in ("tp", "fp", "fn", "tn")] == [20, 20, 28, 140]


def test_the_radius_decides(catalog: str, tmp_path: Path) -> None:
    assert judged(catalog, lsbgs(0, off_arcsec=1.4), tmp_path).figures["truth_lsbg_detected"] == 0
    figures = judged(catalog, lsbgs(0, off_arcsec=1.4), tmp_path, radius_arcsec=2.0).figures
    assert figures["truth_lsbg_detected"] == 20


def test_further_detections_of_an_lsbg_are_passed_over(catalog: str, tmp_path: Path) -> None:
    """One of 25 arcsec radius reaches its four neighbours at 30 arcsec, and those at the corners do not count."""
    ra, dec = neighbourhood(*PLACES[2])
    large = pa.table({"ra": ra[55:56], "dec": dec[55:56], "label": [1], "r_eff_arcsec": [25.0]})
    figures = judged(catalog, large, tmp_path).figures
    assert (figures["rows_passed_over"], figures["truth_lsbg_detected"]) == (4, 1)
    assert figures["tp"] + figures["fp"] + figures["fn"] + figures["tn"] == 96


def test_properties_that_the_truth_lacks_are_told(catalog: str, tmp_path: Path) -> None:
    summary = judged(catalog, lsbgs(0).drop_columns(["mu_eff_g", "mag_g"]), tmp_path)
    assert not {"completeness_by_mu_eff_g", "completeness_by_mag_g"} & set(summary.figures)
    assert "completeness_by_r_eff_arcsec" in summary.figures
    assert "no completeness by magnitude, g: the truth has no values in a column mag_g" in summary.text


def test_the_figure(catalog: str, tmp_path: Path) -> None:
    target = tmp_path / "completeness.png"
    summary = judged(catalog, lsbgs(0), tmp_path, output=str(target))
    assert summary.output == str(target)
    picture = Image.open(target)
    assert picture.format == "PNG"
    assert picture.width > 3 * picture.height > 900, "three panels side by side"
    assert np.asarray(picture.convert("L")).std() > 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.set_column(0, "ra", pa.array(np.full(25, 77.0))), "do not overlap"),
        (lambda table: table.drop_columns(["label"]), "no column label"),
        (lambda table: table.set_column(2, "label", pa.array(["galaxy"] * 25)), "label does not hold 1"),
        (lambda table: table.set_column(2, "label", pa.array([0, 1, 2, 2, 1] * 5)), "but 2 too; give every class"),
        (lambda table: table.set_column(2, "label", pa.array([0] * 25)), "no row has label 1"),
        (lambda table: table.set_column(1, "dec", pa.array(np.full(25, np.nan))), "25 of 25 rows have no possible ra"),
        (lambda table: table.set_column(0, "ra", table["ra"].cast(pa.float32())), "float64"),
        (lambda table: table.set_column(3, "mu_eff_g", pa.array(["faint"] * 25)), "mu_eff_g does not hold numbers"),
    ],
)
def test_a_truth_that_cannot_be_used_is_refused_and_nothing_written(
    catalog: str, tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        judged(catalog, change(lsbgs(0)), tmp_path, output=str(tmp_path / "a.png"))
    assert [path.name for path in tmp_path.iterdir()] == ["truth.parquet"]


def test_a_checkpoint_has_no_such_figure() -> None:
    with pytest.raises(UsageError, match="--output is the figure of --catalog"):
        Evaluate.resolve({"checkpoint": "c", "cutouts": "d", "output": "x.png"}, "test")


def test_a_row_that_repeats_an_object_takes_no_match_from_it(tmp_path: Path) -> None:
    storage.write_table(str(tmp_path / "truth.parquet"), lsbgs(0))
    table = scored(0)
    repeated = np.full(ROWS, Flag.DUPLICATE_ID.bit, np.int32)
    again = table.set_column(6, table.schema.field("flags"), pa.array(repeated))
    again = again.set_column(4, table.schema.field("p_lsbg"), pa.nulls(ROWS, pa.float32()))
    comparison = Comparison(read_truth(str(tmp_path / "truth.parquet")), 1.0)
    comparison.add(pa.concat_tables([again, table]))
    found = comparison.compare()
    assert np.isfinite(found.p_lsbg[found.detected]).all()
    assert (len(found.rows.labels), found.passed_over) == (104, 0)


def test_the_order_and_size_of_the_parts_do_not_matter(tmp_path: Path) -> None:
    storage.write_table(str(tmp_path / "truth.parquet"), pa.concat_tables([lsbgs(0), lsbgs(1)]))
    truth = read_truth(str(tmp_path / "truth.parquet"))
    table = pa.concat_tables([scored(0), scored(1), scored(2)])
    told = []
    for seed, parts in ((1, 1), (2, 7), (3, 40)):
        order = np.random.default_rng(seed).permutation(table.num_rows)
        comparison = Comparison(truth, 1.0)
        for part in np.array_split(order, parts):
            comparison.add(table.take(pa.array(part)))
        found = comparison.compare()
        p, labels = found.rows.probabilities, found.rows.labels
        told.append((sorted(p[labels == 1]), sorted(p[labels == 0]), found.p_lsbg.tolist(), found.rows_outside))
    for other in told[1:]:
        np.testing.assert_equal(other, told[0])
