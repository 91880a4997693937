"""`report`: the page about a run or a catalogue, read by a parser and by a browser without a network."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import hypothesis
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deepshadows import storage
from deepshadows.catalog import inventory
from deepshadows.model.metrics import Judged
from deepshadows.outcomes import ExitCode, Failure, InputError, Summary, UsageError
from deepshadows.run.plan import Draft, Plan
from deepshadows.run.record import RunRecord, read_record
from deepshadows.run.units import Unit, make_unit
from deepshadows.schema import Flag
from deepshadows.settings import Evaluate, Publish, Report
from deepshadows.sky.cutouts import Geometry, cut
from deepshadows.sky.shards import write_shard
from deepshadows.sky.stretch import DES
from deepshadows.sky.tile_index import scan_tiles
from deepshadows.sky.tiles import read_tile
from deepshadows.verbs import evaluate, publish, report
from deepshadows.verbs.review import charts
from deepshadows.verbs.review.images import Wanted, read_images
from deepshadows.verbs.review.run_parts import units_named
from deepshadows.verbs.review.tally import Chosen, SkyCounts, Tally
from tests.chromium import BINARY, Chromium
from tests.sky.tile_files import write_tile
from tests.verbs.reported_runs import UNIT_ROWS, probabilities, survey, truth_of, write_classified

SECTIONS = ["counts", "sky", "scores", "objects", "flags", "quarantine", "throughput", "provenance"]
VOID = {"meta", "link", "img", "br"}


@dataclass
class Element:
    """A tag with its attributes and all text below it."""

    tag: str
    attributes: dict[str, str]
    inside: list[str] = field(default_factory=list)
    parents: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.inside).split())


class Page(HTMLParser):
    """The elements of a page in their order; complains of tags that do not close."""

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.source = Path(path).read_text()
        self.feed(self.source)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        parents = tuple(element.tag for element in self._open)
        element = Element(tag, {name: value or "" for name, value in attrs}, parents=parents)
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.inside.append(data)

    def all(self, tag: str) -> list[Element]:
        return [element for element in self.elements if element.tag == tag]

    def section(self, name: str) -> Element:
        return next(element for element in self.all("section") if element.attributes["id"] == name)


def made(source: str, place: Path, **settings: object) -> tuple[Summary, Page]:
    summary = report.run(Report(source=source, output=str(place / "page.html"), **settings))
    return summary, Page(place / "page.html")


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 objects in 12 units, one of them quarantined; with the truth."""
    root = tmp_path_factory.mktemp("classified")
    cutouts = survey(600)
    write_classified(str(root), cutouts, lost=[3])
    storage.write_table(str(root / "truth.parquet"), truth_of(cutouts))
    return root


@pytest.fixture(scope="module")
def whole(classified: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Summary, Page, Path]:
    """A page with everything on it."""
    place = tmp_path_factory.mktemp("whole")
    truth = str(classified / "truth.parquet")
    summary, page = made(str(classified / "run"), place, truth=truth, prevalence=0.05, usd_per_hour=2.5, gallery=8)
    return summary, page, place / "page.html"


def test_the_counts_are_those_of_the_run(whole: tuple[Summary, Page, Path]) -> None:
    summary, page, _ = whole
    figures = summary.figures
    names = ("rows_planned", "rows_scored", "rows_unscored", "rows_quarantined")
    assert [figures[name] for name in names] == [600, 539, 11, 50]
    assert "600 rows planned = 539 scored + 11 unscored + 50 quarantined." in page.section("counts").text
    p, flags = probabilities(survey(600)), survey(600).flags
    there = np.arange(600) // UNIT_ROWS != 3
    scored = there & (flags & Flag.NO_IMAGE.bit == 0)
    assert figures["rows_selected"] == np.count_nonzero(p[scored] >= 0.5)
    foreign = int(np.count_nonzero(flags[there] & Flag.OUT_OF_DOMAIN.bit))
    assert f"OUT_OF_DOMAIN informational {foreign}" in page.section("flags").text
    assert "not a readable Parquet file: <truncated> & torn" in page.section("quarantine").text
    assert "ab" * 32 in page.section("provenance").text
    assert "550 12.5 44 test engine" in page.section("throughput").text
    assert f"{2.5 * 12.5 / 3600:.4f}" in page.section("throughput").text
    expected = [f"{level:g} {np.count_nonzero(p[scored] >= level)} " for level in (0.5, 0.9, 0.95, 0.99)]
    assert all(text in page.section("scores").text for text in expected)


def test_the_page_needs_nothing_beside_it_and_runs_nothing(whole: tuple[Summary, Page, Path]) -> None:
    summary, page, path = whole
    assert not page.all("script")
    assert all(element.attributes["src"].startswith("data:image/png;base64,") for element in page.all("img"))
    assert [element.attributes["href"] for element in page.all("link")] == ["data:,"]
    assert not any(name.startswith("on") for element in page.elements for name in element.attributes)
    assert "url(" not in page.source
    assert "@import" not in page.source
    assert summary.figures["page_bytes"] == path.stat().st_size < 1_500_000


def test_it_can_be_read_without_eyes_and_without_a_mouse(whole: tuple[Summary, Page, Path]) -> None:
    _, page, _ = whole
    assert page.all("html")[0].attributes["lang"] == "en"
    assert page.all("title")[0].text == page.all("h1")[0].text == "Run run"
    assert Counter(element.tag for element in page.elements if element.tag in ("header", "nav", "main")) == Counter(
        ("header", "nav", "main")
    )
    skip = page.all("a")[0]
    assert (skip.attributes["class"], skip.attributes["href"]) == ("skip", "#main")
    ids = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    links = [element.attributes["href"][1:] for element in page.all("a") if element.attributes["href"].startswith("#")]
    assert set(links) <= set(ids)
    sections = [element.attributes["id"] for element in page.all("section")]
    assert [name for name in sections if name != "truth"] == SECTIONS
    assert all(element.attributes["aria-labelledby"] in ids for element in page.all("section"))
    assert all(len(element.attributes["alt"]) > 25 for element in page.all("img"))
    assert all(element.text for element in page.all("figcaption"))
    tables = [element for element in page.elements if element.attributes.get("class") == "wide"]
    assert len(tables) == len(page.all("table")) == len(page.all("caption")) > 5
    assert all(element.attributes["tabindex"] == "0" and element.attributes["aria-label"] for element in tables)
    assert all(element.attributes["scope"] in ("col", "row") for element in page.all("th"))
    levels = [int(element.tag[1]) for element in page.elements if re.fullmatch(r"h\d", element.tag)]
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))


def test_the_objects_shown_are_the_right_ones_with_their_pixels(
    whole: tuple[Summary, Page, Path], classified: Path
) -> None:
    _, page, _ = whole
    cutouts = survey(600)
    p = probabilities(cutouts).astype(np.float64)
    lost = (np.arange(600) // UNIT_ROWS == 3) | (cutouts.flags & Flag.NO_IMAGE.bit != 0)
    p[lost] = np.nan
    links = [element for element in page.all("a") if "aria-label" in element.attributes]
    shown = [int(re.match(r"object (\d+),", link.attributes["aria-label"])[1]) - 1000 for link in links]  # type: ignore[index]
    galleries = [shown[start : start + 8] for start in range(0, 32, 8)]
    assert galleries[0] == list(np.argsort(-p, kind="stable")[:8])
    assert galleries[1] == list(np.argsort(np.abs(p - 0.5), kind="stable")[:8])
    assert not np.isnan(p[galleries[2]]).any()
    assert len(set(galleries[2])) == 8
    assert (cutouts.flags[galleries[3]] & Flag.OUT_OF_DOMAIN.bit != 0).all()
    pictures = [element for element in page.all("img") if element.parents[-1] == "a"]
    for row, link, picture in zip(shown, links, pictures, strict=True):
        data = base64.b64decode(picture.attributes["src"].partition(",")[2])
        assert (np.asarray(Image.open(io.BytesIO(data))) == cutouts.images[row]).all()
        address = urlsplit(link.attributes["href"])
        assert (address.scheme, address.netloc, address.path) == ("https", "www.legacysurvey.org", "/viewer")
        asked = parse_qs(address.query)
        assert float(asked["ra"][0]) == pytest.approx(cutouts.ra[row], abs=1e-6)
        assert float(asked["dec"][0]) == pytest.approx(cutouts.dec[row], abs=1e-6)
        assert asked["layer"] == ["des-dr1"]


def test_purity_and_completeness_are_those_of_evaluate(
    whole: tuple[Summary, Page, Path], classified: Path, ray_local: None, tmp_path: Path
) -> None:
    summary, page, _ = whole
    catalog, run = str(tmp_path / "cat"), shutil.copytree(classified / "run", tmp_path / "run")
    publish.run(Publish(run=(str(run),), catalog=catalog))
    truth = str(classified / "truth.parquet")
    judged = evaluate.run(Evaluate(catalog=catalog, truth=truth, threshold=0.5, prevalence=0.05)).figures
    same = ("tp", "fp", "fn", "tn", "completeness", "completeness_lo", "purity", "purity_hi", "purity_at_prevalence")
    assert {name: summary.figures[name] for name in same} == {name: judged[name] for name in same}
    assert f"{judged['completeness']:.3f} {judged['completeness_lo']:.3f} to" in page.section("truth").text
    of_catalogue, shown = made(catalog, tmp_path, truth=truth, prevalence=0.05, gallery=2)
    assert {name: of_catalogue.figures[name] for name in same} == {name: judged[name] for name in same}
    assert shown.all("h1")[0].text == "Catalogue cat, version v0001"
    assert of_catalogue.figures["rows_planned"] == 600
    assert of_catalogue.figures["images_gone"] == 0
    one, _ = made(f"{catalog}/v0001", tmp_path, gallery=2)
    assert one.figures["rows_selected"] == of_catalogue.figures["rows_selected"]
    finding = {"what": "score shift", "against": "before", "where": "survey", "rows": 9, "value": 0.4, "limit": 0.25}
    drift = {"line": "DRIFT: score shift <b>", "findings": [{**finding, "alarm": True}]}
    objects = {"new": 7, "gone": 2, "up": 3, "down": 1, "shifts": [0, 4, 6, 0], "shift_edges": [-1, -0.5, 0, 0.5, 1]}
    diff = {"objects": objects, "version_before": "v0000", "partitions": {"rewritten": ["a"], "carried": 3}}
    for name, told in (("diff", diff), ("drift", drift)):
        Path(catalog, "v0001", f"{name}.json").write_text(json.dumps(told))
    _, shown = made(catalog, tmp_path, gallery=0)
    told = shown.section("changes").text
    for part in (
        "DRIFT: score shift <b>",
        "new 7",
        "crossed the threshold downwards 1",
        "before survey 9 0.400 0.250",
        "version before v0000",
        "1 rewritten, 3 carried over",
    ):
        assert part in told
    assert any("4 objects fell, 6 rose" in image.attributes["alt"] for image in shown.all("img"))
    Path(catalog, "v0001", "diff.json").write_text("[1")
    with pytest.raises(InputError, match=r"diff\.json: damaged"):
        made(catalog, tmp_path)
    Path(catalog, "v0001", "diff.json").unlink()
    with pytest.raises(Failure, match="v0009"):
        made(f"{catalog}/v0009", tmp_path)
    units = list(Plan(str(run), read_record(str(run))))
    shutil.rmtree(run / "units")
    gone, shown = made(catalog, tmp_path, gallery=2)
    assert gone.figures["images_shown"] == 0
    assert "units/run-00000.parquet: not found" in shown.section("objects").text
    shutil.rmtree(run)
    inventory.write(f"{catalog}/v0001", inventory_of(units))
    kept, shown = made(catalog, tmp_path, gallery=2)
    assert (kept.figures["images_gone"], kept.figures["images_shown"]) == (0, of_catalogue.figures["images_shown"])
    assert "torn" in shown.section("quarantine").text
    assert "not read" in shown.section("provenance").text


def inventory_of(units: list[Unit]) -> inventory.Inventory:
    """What a version of `reprocess` keeps of its units; the fourth could not be read."""
    rows = [
        {name: getattr(unit, name) for name in inventory.UNIT_COLUMNS.names if hasattr(unit, name)}
        | {"run": "run", "reason": "torn" if number == 3 else "", "unscored": 0, "scores": [], "mean": [], "spread": []}
        for number, unit in enumerate(units)
    ]
    told = inventory.InventorySummary(recipe="", id_type="int64", checkpoint={}, runs={})
    return inventory.Inventory(told, pa.Table.from_pylist(rows, schema=inventory.INVENTORY_SCHEMA))


def test_an_identifier_that_is_a_script_is_text(tmp_path: Path) -> None:
    evil = "<script>document.title='owned'</script>\"'><img src=x onerror=alert(1)>"
    cutouts = survey(40, strings=True)
    cutouts = replace(cutouts, object_id=pa.array([f"{evil}{row}" for row in range(40)]))
    url = write_classified(str(tmp_path), cutouts, run='run"><script>1</script>')
    _, page = made(url, tmp_path, gallery=3)
    assert not page.all("script")
    assert not any("onerror" in element.attributes for element in page.elements)
    assert evil in page.section("objects").text
    assert all("onerror" in image.attributes["alt"] for image in page.all("img") if image.parents[-1] == "a")


def test_a_run_that_is_not_finished_is_marked(tmp_path: Path) -> None:
    url = write_classified(str(tmp_path), survey(200), lost=[1], left=1, finished=False)
    summary, page = made(url, tmp_path, gallery=2)
    assert summary.exit_code == ExitCode.DONE
    assert not summary.figures["finished"]
    names = ("planned", "scored", "unscored", "quarantined", "left")
    assert [summary.figures[f"rows_{name}"] for name in names] == [200, 98, 2, 50, 50]
    assert "Unfinished: 50 of 200 rows are not scored yet." in page.all("header")[0].text
    assert "unfinished" in " ".join(summary.text)


def test_a_run_on_s3_and_a_page_beside_it(bucket: str, tmp_path: Path) -> None:
    url = write_classified(bucket, survey(100))
    summary = report.run(Report(source=url, output=f"{bucket}/page.html", gallery=2))
    assert (summary.figures["rows_planned"], summary.figures["images_gone"]) == (100, 0)
    (tmp_path / "page.html").write_bytes(storage.read(f"{bucket}/page.html"))
    assert url in Page(tmp_path / "page.html").section("provenance").text


def test_images_of_input_that_changed_or_went_are_told_of(tmp_path: Path) -> None:
    cutouts = survey(100)
    url = write_classified(str(tmp_path), cutouts)
    write_shard(str(tmp_path / "shards" / "000.parquet"), cutouts.take(np.arange(49)))
    (tmp_path / "shards" / "001.parquet").unlink()
    summary, page = made(url, tmp_path, gallery=4)
    assert summary.figures["images_shown"] == 0
    assert "000.parquet: changed since it was scored" in page.section("objects").text
    assert "001.parquet: not found" in page.section("objects").text
    assert page.section("objects").text.count("no image") >= 8


def test_images_of_tiles_are_those_that_the_network_saw(tmp_path: Path) -> None:
    write_tile(tmp_path / "tiles", "T1")
    index = scan_tiles(str(tmp_path / "tiles"))
    (tile,) = index.tiles
    source = json.dumps({"bands": {band: asdict(at) for band, at in tile.bands.items()}, "problems": []})
    known = {"url": "detections", "etag": "", "size_bytes": 1, "rows": 2, "tile": tile.tile_id, "source": source}
    unit = make_unit(kind="tile", **known)
    Draft([unit]).write(str(tmp_path / "run"), "run")
    record = RunRecord(
        run="run", fingerprint="", inventory="", plan_parts=1, settings={}, checkpoint={}, preprocessing={},
        id_type="int64", units_planned=1, rows_planned=2, versions={},
    )  # fmt: skip
    (tmp_path / "run" / "run.json").write_text(record.model_dump_json())
    preparation = {"stretch": "des-1", "fov_arcsec": 33.5, "bands": ["z", "r", "g"]}

    def images(objects: list[Wanted]) -> dict[Wanted, object]:
        return dict(read_images(objects, preparation, lambda run, names: units_named(str(tmp_path / run), names)))

    objects = [Wanted(number, 30.0, -30.0 + number / 3600, unit.unit, "run") for number in range(2)]
    found = images(objects)
    geometry = Geometry(stretch=DES)
    seen = cut(read_tile(tile, geometry.bands), np.full(2, 30.0), np.array([-30.0, -30 + 1 / 3600]), geometry).images
    for one, image in zip(objects, seen, strict=True):
        assert np.array_equal(found[one], image)
    (tmp_path / "tiles" / "T1_r.fits").unlink()
    gone = images(objects)
    assert all("T1_r.fits: not found" in str(reason) for reason in gone.values())
    stranger, other = Wanted(1, 1.0, 1.0, "x", "another"), Wanted(1, 1.0, 1.0, "x", "run")
    told = images([stranger, other])
    assert "run.json is gone" in str(told[stranger])
    assert told[other] == "its work unit is not among those of run run"


def test_a_run_without_rows_has_a_page(tmp_path: Path) -> None:
    url = write_classified(str(tmp_path), survey(50), lost=[0])
    summary, page = made(url, tmp_path)
    assert summary.figures["rows_selected"] == summary.figures["images_shown"] == 0
    assert "No row has a place on the sky." in page.section("sky").text


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("notes.txt", "hello", UsageError, "neither a run .* nor a catalogue"),
        ("run.json", "{}", InputError, "not a run record of this version"),
        ("manifest.json", '{"format_version": 99}', InputError, "manifest"),
        ("collection.properties", "obs_collection=x\nhats_primary_table_url=v0001/x\ndeepshadows_format=99\n",
         InputError, "written in format 99"),
        ("collection.properties", "obs_collection=x\nhats_primary_table_url=y\n", InputError, "did not write"),
    ],
)  # fmt: skip
def test_what_cannot_be_reported_is_refused(
    tmp_path: Path, name: str, text: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_text(text)
    with pytest.raises(error, match=message):
        made(str(tmp_path / "in"), tmp_path)
    assert not (tmp_path / "page.html").exists()


def test_nothing_is_written_into_the_run_nor_where_truth_does_not_overlap(classified: Path, tmp_path: Path) -> None:
    run = str(classified / "run")
    with pytest.raises(UsageError, match="lies within"):
        report.run(Report(source=run, output=f"{run}/page.html"))
    far = truth_of(survey(10)).set_column(0, "ra", pa.array(np.full(11, 200.0)))
    storage.write_table(str(tmp_path / "far.parquet"), far)
    with pytest.raises(InputError, match="do not overlap"):
        made(run, tmp_path, truth=str(tmp_path / "far.parquet"))
    assert not (tmp_path / "page.html").exists()


def test_a_damaged_score_object_is_named(tmp_path: Path) -> None:
    url = write_classified(str(tmp_path), survey(100))
    victim = storage.list_objects(f"{url}/scores")[0].url
    storage.write(victim, b"PAR1 but no more")
    with pytest.raises(InputError, match=re.escape(storage.name_of(victim))):
        made(url, tmp_path)


def test_a_sky_with_more_pixels_than_fit_is_told_more_coarsely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepshadows.verbs.review.tally.MOST_PIXELS", 100)
    counts = SkyCounts()
    rng = np.random.default_rng(1)
    for _ in range(5):
        counts.add(rng.integers(0, 12 << 58, 1000), rng.random(1000) < 0.3)
    assert len(counts.pixels) <= 100
    assert counts.order == 1
    assert counts.counts[:, 0].sum() == 5000
    assert 1300 < counts.counts[:, 1].sum() < 1700


@pytest.mark.parametrize("count", [0, 1, 7, 2000])
def test_the_chosen_are_those_of_smallest_key_however_they_come(count: int) -> None:
    keys = np.random.default_rng(count).permutation(1000).astype(np.float64)
    keys[::10] = np.nan
    chosen = Chosen(count)
    for part in np.array_split(np.arange(1000), 13):
        chosen.add(pa.table({"row": part}), keys[part])
    rows = [] if chosen.rows is None else chosen.rows["row"].to_pylist()
    assert rows == [row for row in np.argsort(keys, kind="stable") if np.isfinite(keys[row])][:count]


def test_what_is_drawn_at_random_does_not_depend_on_where_rows_lie() -> None:
    """Every row has the same chance: of 40 drawn from 400 in two parts, about half come from each."""
    table = pa.table({
        "ra": np.full(200, 10.0), "dec": np.full(200, 10.0), "flags": np.zeros(200, np.int32),
        "p_lsbg": np.full(200, 0.5, np.float32), "row": np.arange(200),
    })  # fmt: skip
    halves = []
    for seed in range(40):
        tally = Tally(threshold=0.5, prevalence=None, shown=40, seed=seed)
        for part in (0, 1):
            tally.add(table.append_column("part", pa.array(np.full(200, part))))
        drawn = tally.galleries["random"].rows
        assert drawn is not None
        halves.append(np.mean(drawn["part"].to_numpy()))
    assert abs(np.mean(halves) - 0.5) < 0.05


def test_the_curve_by_hand() -> None:
    """Five LSBGs, one of them never detected, and four artifacts."""
    p = np.array([0.9, 0.8, 0.8, 0.4, np.nan, 0.95, 0.8, 0.3, np.nan])
    labels = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0], np.int8)
    rows = Judged(probabilities=p, labels=labels, undetected=np.arange(9) == 4)
    levels, completeness, purity = charts.curve(rows, None)
    assert levels.tolist() == [0.95, 0.9, 0.8, 0.4, 0.3]
    assert completeness == pytest.approx([0, 0.2, 0.6, 0.8, 0.8])
    assert purity == pytest.approx([0, 1 / 2, 3 / 5, 4 / 6, 4 / 7])
    rare = charts.curve(rows, 0.1)[2]
    assert rare[2] == pytest.approx(0.1 * 0.75 / (0.1 * 0.75 + 0.9 * 0.5))  # a prevalence is one among detections


@given(st.integers(1, 30_000), st.floats(0.01, 0.99))
@hypothesis.settings(max_examples=20, deadline=None)
def test_a_long_curve_is_drawn_with_few_points_from_end_to_end(count: int, share: float) -> None:
    rng = np.random.default_rng(count)
    completeness = np.cumsum(rng.random(count) < share) / count
    drawn = charts._drawn(completeness)
    assert len(drawn) <= charts.MOST_POINTS + 1
    assert (np.diff(drawn) > 0).all()
    assert (drawn[0], drawn[-1]) == (0, count - 1)


CONTRAST = """(() => {
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126*r + 0.7152*g + 0.0722*b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
  let worst = 99, what = '';
  for (const e of document.body.querySelectorAll('*')) {
    if (![...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < worst) { worst = ratio; what = e.outerHTML.slice(0, 80); }
  }
  return [worst, what]; })()"""


@pytest.mark.skipif(not BINARY, reason="needs Chromium: apt-get install chromium")
@pytest.mark.timeout(120)
def test_a_browser_without_a_network_shows_it(whole: tuple[Summary, Page, Path]) -> None:
    _, page, path = whole
    with Chromium() as browser:
        for width, scheme in ((1280, "light"), (360, "dark")):
            browser.open(path, width=width, scheme=scheme)
            assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
                "no sideways scrolling"
            )
            worst, what = browser.evaluate(CONTRAST)
            assert worst >= 4.5, what
        sizes = browser.evaluate("[...document.images].map(i => [i.naturalWidth, i.naturalHeight, i.offsetWidth])")
        assert len(sizes) == len(page.all("img")) > 30
        assert all(min(size) >= 60 for size in sizes)
        browser.press("Tab")
        assert browser.evaluate("document.activeElement.className") == "skip"
        browser.press("Enter")
        assert browser.evaluate("location.hash") == "#main"
        tables = browser.evaluate("[...document.querySelectorAll('.wide, .gallery a')].every(e => e.tabIndex == 0)")
        assert tables, "the keyboard reaches every table and object"
        assert {urlsplit(url).scheme for url in browser.requests} <= {"file", "data"}
        assert [url for url in browser.requests if url.startswith("file")] == [path.as_uri()] * 2
        assert browser.complaints == []
