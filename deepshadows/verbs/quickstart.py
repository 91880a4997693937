"""`quickstart`: a small simulated survey from sky to catalogue, judged against its truth. Each step is a verb."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console

from deepshadows import settings, storage
from deepshadows.catalog.collection import read_current
from deepshadows.model import shipped
from deepshadows.model.card import read_card
from deepshadows.outcomes import Summary
from deepshadows.sky.cutouts import cut
from deepshadows.sky.tile_index import scan_tiles
from deepshadows.sky.tiles import read_tile
from deepshadows.verbs import classify, detect, evaluate, pictures, publish, report, simulate
from deepshadows.verbs.against_truth import read_truth, true_rows
from deepshadows.verbs.classify_plan import card_geometry
from deepshadows.verbs.ray_session import ray_session

SURVEY_TILES = 4
SURVEY_SEED_OFFSET = 1_000_000
"""The survey is drawn from other seeds than training skies are: nothing is judged on what was trained on."""
MATCH_ARCSEC = 3.0
SHOWN = 10
PICTURED = 24


@dataclass(frozen=True)
class _Places:
    """Where everything is."""

    root: str

    def __getitem__(self, name: str) -> str:
        return storage.join(self.root, name)


def run(wanted: settings.Quickstart) -> Summary:
    """Simulate, detect, classify, publish, and compare with the truth; the exit code is the highest of the steps'."""
    started = time.monotonic()
    places = _Places(storage.normalise(wanted.output))
    checkpoint = shipped.normalise(wanted.checkpoint)
    read_card(checkpoint)
    with ray_session(wanted.address):
        _step("1/4  Simulating a survey and detecting its sources")
        survey = places["survey"]
        tiles, truth = f"{survey}/tiles", f"{survey}/truth.parquet"
        if not storage.exists(f"{survey}/tile_index.parquet"):  # written last
            simulate.run(settings.Simulate(tiles=SURVEY_TILES, seed=wanted.seed + SURVEY_SEED_OFFSET, output=survey))
        found = detect.run(settings.Detect(tiles=tiles, output=places["detections.parquet"], cuts="des"))
        _step("2/4  Classifying every detection")
        scored = classify.run(
            settings.Classify(
                input=tiles,
                detections=places["detections.parquet"],
                checkpoint=checkpoint,
                precision=wanted.precision,
                output=places["run"],
            )
        )
        _step("3/4  Publishing the catalogue")
        published = publish.run(settings.Publish(run=(places["run"],), catalog=places["catalog"]))
        _step("4/4  Comparing with the truth")
        against = {"truth": truth, "radius_arcsec": MATCH_ARCSEC, "threshold": 0.5}
        judged = evaluate.run(
            settings.Evaluate(catalog=places["catalog"], output=places["completeness.png"], **against)
        )
        told = report.run(settings.Report(source=places["catalog"], output=places["report.html"], **against))
    catalogue = read_current(places["catalog"]).sort_by([("p_lsbg", "descending")])
    catalogue = catalogue.filter(catalogue["p_lsbg"].is_valid())
    is_lsbg = true_rows(catalogue["ra"].to_numpy(), catalogue["dec"].to_numpy(), read_truth(truth), MATCH_ARCSEC)
    _draw(places, catalogue, is_lsbg, tiles, checkpoint)
    seconds = time.monotonic() - started
    kept, detected = judged.figures["tp"], judged.figures["truth_lsbg_detected"]
    text = (
        found.text[0],
        *scored.text,
        *itertools.takewhile(lambda line: not line.startswith("completeness by"), judged.text),
        f"of the {detected} LSBGs that are detected and pass the cuts, the network keeps {kept / max(detected, 1):.1%}",
        "",
        *_best(catalogue, is_lsbg),
        "",
        f"catalogue  {places['catalog']}   (lsdb.open_catalog opens it)",
        f"network    {checkpoint}",
        f"pictures   {places['gallery.png']}  {places['scores.png']}  {places['completeness.png']}",
        f"report     {places['report.html']}   (open it in a browser)",
        f"done in {seconds:.0f} s",
    )
    figures = {**scored.figures, **judged.figures}
    code = max(step.exit_code for step in (found, scored, published, judged, told))
    return Summary(verb="quickstart", output=places.root, exit_code=code, figures=figures, text=text)


def _step(title: str) -> None:
    Console(stderr=True, highlight=False).print(f"[bold]{title}[/bold]")


def _best(catalogue: pa.Table, is_lsbg: NDArray[np.bool_]) -> list[str]:
    """The best candidates as a table."""
    lines = ["best candidates:", f"{'object_id':>20} {'ra_deg':>11} {'dec_deg':>11} {'p_lsbg':>7}  truth"]
    for row, good in zip(catalogue.slice(0, SHOWN).to_pylist(), is_lsbg, strict=False):
        truth = "LSBG" if good else "not an LSBG"
        lines.append(f"{row['object_id']:>20} {row['ra']:11.6f} {row['dec']:11.6f} {row['p_lsbg']:7.3f}  {truth}")
    return lines


def _draw(places: _Places, catalogue: pa.Table, is_lsbg: NDArray[np.bool_], tiles: str, checkpoint: str) -> None:
    """gallery.png and scores.png."""
    card = read_card(checkpoint)
    geometry = card_geometry(card)
    index = scan_tiles(tiles)
    top = catalogue.slice(0, PICTURED)
    ra, dec = top["ra"].to_numpy(), top["dec"].to_numpy()
    owner = index.owners(ra, dec)[0]
    images = np.zeros((len(ra), geometry.size_pix, geometry.size_pix, len(geometry.bands)), np.uint8)
    for number in np.unique(owner[owner >= 0]):
        mine = owner == number
        images[mine] = cut(read_tile(index.tiles[number], geometry.bands), ra[mine], dec[mine], geometry).images
    captions = [f"p = {p:.3f}" for p in top["p_lsbg"].to_pylist()]
    title = f"Best {len(ra)} candidates of the simulated survey; green frames are true LSBGs"
    storage.write(places["gallery.png"], pictures.gallery(images, captions, is_lsbg[: len(ra)], title))
    histogram = pictures.score_histogram(catalogue["p_lsbg"].to_numpy(), is_lsbg, card.threshold)
    storage.write(places["scores.png"], histogram)
