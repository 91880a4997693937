"""`explain`: which objects are drawn, under which names, and what the pictures and the table hold."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deepshadows import storage
from deepshadows.model.card import Card
from deepshadows.model.checkpoint import save
from deepshadows.model.scorer import load_scorer
from deepshadows.outcomes import InputError
from deepshadows.settings import Explain
from deepshadows.sky.shards import Cutouts, write_shard
from deepshadows.verbs import explain
from deepshadows.verbs.explanation_pictures import Explained, panel
from tests.model.blobs import blob_cutouts, seasoned_net


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("network"))
    save(url, seasoned_net(), Card(name="seasoned"))
    return url


def settings(folder: str, cutouts: Cutouts, network: str, **changes: object) -> Explain:
    write_shard(storage.join(folder, "shards", "a.parquet"), cutouts)
    values = {"checkpoint": network, "cutouts": storage.join(folder, "shards"), "output": storage.join(folder, "seen")}
    return Explain.model_validate({**values, **changes})


def written(wanted: Explain) -> pa.Table:
    return pq.read_table(io.BytesIO(storage.read(storage.join(wanted.output, "explain.parquet"))))


def pixels(wanted: Explain, name: str) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(storage.read(storage.join(wanted.output, name))), format="png")


def test_the_objects_of_highest_p_lsbg_are_drawn_highest_first(object_store: None, network: str, place: str) -> None:
    wanted = settings(place, blob_cutouts(30), network, top=5)
    summary = explain.run(wanted)
    table = written(wanted)
    assert summary.figures["rows"] == table.num_rows == 5
    scorer = load_scorer(network, precision="exact")
    p_lsbg = scorer.score(blob_cutouts(30).images).p_lsbg
    assert table["object_id"].to_pylist() == np.argsort(-p_lsbg, kind="stable")[:5].tolist()
    np.testing.assert_allclose(table["p_lsbg"].to_numpy(), np.sort(p_lsbg)[::-1][:5])
    assert table["label"].to_pylist() == [row % 2 for row in table["object_id"].to_pylist()]
    stored = {storage.name_of(entry.url) for entry in storage.list_objects(wanted.output)}
    assert stored == {"explain.parquet", "overview.png", *table["file"].to_pylist()}
    for name in stored - {"explain.parquet"}:
        picture = pixels(wanted, name)
        assert min(picture.shape[:2]) > 200
        assert picture[..., :3].std() > 0.1  # not an empty sheet


def test_ids_are_drawn_in_their_order_however_they_are_given(network: str, tmp_path: Path) -> None:
    cutouts = replace(blob_cutouts(8), object_id=pa.array(["a", "b,c", "d", "d", "e", "f", "g", "h"]))
    wanted = settings(str(tmp_path), cutouts, network, ids=("g, a", "b,c", "d", "a"))
    explain.run(wanted)
    table = written(wanted)
    assert table["object_id"].to_pylist() == ["g", "a", "b,c", "d"]
    assert table["label"].to_pylist() == [0, 0, 1, 0]  # of the two called d, the first
    assert table["file"].to_pylist() == ["0001_g.png", "0002_a.png", "0003_b_c.png", "0004_d.png"]


def test_p_lsbg_is_of_the_wanted_precision(network: str, tmp_path: Path) -> None:
    wanted = settings(str(tmp_path), blob_cutouts(4), network, ids=("0,1,2,3",), precision="fast")
    explain.run(wanted)
    scorer = load_scorer(network, precision="fast", threads=len(os.sched_getaffinity(0)))
    p_lsbg = scorer.score(blob_cutouts(4).images).p_lsbg
    np.testing.assert_array_equal(written(wanted)["p_lsbg"].to_numpy(), p_lsbg)


def test_the_decision_is_that_of_the_cards_threshold(network: str, tmp_path: Path) -> None:
    url = str(tmp_path / "strict")
    save(url, seasoned_net(), Card(name="strict", threshold=0.999999))
    wanted = settings(str(tmp_path), blob_cutouts(6), url)
    explain.run(wanted)
    assert set(written(wanted)["decision"].to_pylist()) == {"artifact"}


def test_ids_that_are_not_there_are_named(network: str, tmp_path: Path) -> None:
    wanted = settings(str(tmp_path), blob_cutouts(6), network, ids=("2,77", "nobody"))
    with pytest.raises(InputError, match="2 of 3 ids are not there: 77, nobody; check --ids"):
        explain.run(wanted)
    assert not Path(wanted.output).exists()


def test_an_object_without_an_image_is_named_and_never_among_the_highest(network: str, tmp_path: Path) -> None:
    flags = np.array([1, 0, 0, 0, 0, 0], np.int32)
    wanted = settings(str(tmp_path), replace(blob_cutouts(6), flags=flags), network, ids=("0", "1"))
    with pytest.raises(InputError, match=r"no image that could be scored: 0 \(NO_IMAGE\); leave these ids out"):
        explain.run(wanted)
    explain.run(wanted.model_copy(update={"ids": ()}))
    assert sorted(written(wanted)["object_id"].to_pylist()) == [1, 2, 3, 4, 5]


def test_nothing_to_explain_is_an_error(network: str, tmp_path: Path) -> None:
    wanted = settings(str(tmp_path), replace(blob_cutouts(4), flags=np.ones(4, np.int32)), network)
    with pytest.raises(InputError, match="no row has an image"):
        explain.run(wanted)
    with pytest.raises(InputError, match="--ids names no object"):
        explain.run(wanted.model_copy(update={"ids": (" , ",)}))


@given(st.text(), st.integers(1, 10_000))
@example("../../etc/passwd", 1)
@example("..", 2)
@example("/absolute", 3)
@example("a\\b\0c\n", 4)
@example("x" * 5000, 5)
def test_a_file_name_never_leaves_its_folder(object_id: str, number: int) -> None:
    name = explain.file_name(number, object_id)
    assert Path("/seen", name).resolve().parent == Path("/seen")
    assert name.isascii() and not name.startswith((".", "_")) and len(name) < 100
    assert not {"/", "\\", "\0", "\n", " "} & set(name)
    assert explain.file_name(number + 1, object_id) != name


def test_ids_that_are_unsafe_as_names_are_drawn_all_the_same(network: str, tmp_path: Path) -> None:
    names = ["../../up", "$\\frac{", "a/b", "a_b"]
    wanted = settings(str(tmp_path), replace(blob_cutouts(4), object_id=pa.array(names)), network)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    explain.run(wanted)
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert {path.parent for path in new} == {Path(wanted.output)}
    assert len(new) == 4 + 2
    assert sorted(written(wanted)["object_id"].to_pylist()) == sorted(names)


def test_a_panel_shows_the_heat_where_it_is() -> None:
    heat = np.zeros((64, 64), np.float32)
    heat[8:24, 40:56] = 1
    seen = Explained(
        object_id="1", image=np.full((64, 64, 3), 40, np.uint8), heat=heat, p_lsbg=0.9, is_lsbg=True, label=1
    )
    cold = replace(seen, heat=np.zeros_like(heat))
    shown, empty = (
        matplotlib.image.imread(io.BytesIO(panel(one, 33.5)), format="png")[..., :3] for one in (seen, cold)
    )
    changed = np.argwhere(np.abs(shown - empty).max(2) > 0.2) / shown.shape[:2]
    maps = [changed[(changed[:, 1] > left) & (changed[:, 1] < left + 0.302)] for left in (0.02, 0.332, 0.644)]
    assert [len(part) > 0 for part in maps] == [False, True, True]
    for part, left in zip(maps[1:], (0.332, 0.644), strict=True):
        assert (part[:, 1].mean() - left) / 0.302 == pytest.approx(48 / 64, abs=0.03)
