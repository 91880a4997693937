"""Every verb in turn on S3: a simulated sky to a catalogue that is judged against its truth."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from deepshadows import settings, storage
from deepshadows.outcomes import ExitCode
from deepshadows.verbs import classify, cutouts, detect, evaluate, publish, simulate, train

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.timeout(600)]


def test_the_whole_chain_runs_on_s3(bucket: str) -> None:
    sky, detections, shards = f"{bucket}/sky", f"{bucket}/detections.parquet", f"{bucket}/shards"
    simulate.run(settings.Simulate(tiles=2, seed=5, tile_size_pix=1024, output=sky))
    detect.run(settings.Detect(tiles=f"{sky}/tiles", output=detections, cuts="des"))
    found = pq.read_table(storage.open_arrow(detections))
    made = cutouts.run(
        settings.Cutouts(input=f"{sky}/tiles", detections=detections, truth=f"{sky}/truth.parquet", output=shards)
    )
    assert made.figures["rows_planned"] == found.num_rows
    assert made.figures["rows_written"] + made.figures["rows_ambiguous"] == found.num_rows
    assert min(made.figures["labels"].values()) >= 10
    recipe = f"{bucket}/recipe.toml"
    storage.write(recipe, b'optimizer = "adamw"\nlearning_rate = 1e-3\nepochs = 2\nl2_conv = 0.0\nl2_dense = 0.0\n')
    train.run(settings.Train(cutouts=shards, output=f"{bucket}/checkpoint", recipe=recipe))
    scored = classify.run(
        settings.Classify(
            input=f"{sky}/tiles", detections=detections, checkpoint=f"{bucket}/checkpoint", output=f"{bucket}/run"
        )
    )
    assert scored.exit_code == ExitCode.DONE
    assert scored.figures["rows_scored"] == found.num_rows
    from_shards = classify.run(
        settings.Classify(input=shards, checkpoint=f"{bucket}/checkpoint", output=f"{bucket}/run-shards")
    )
    assert from_shards.figures["rows_scored"] == made.figures["rows_written"]
    published = publish.run(settings.Publish(run=(f"{bucket}/run",), catalog=f"{bucket}/catalog"))
    assert published.exit_code == ExitCode.DONE
    judged = evaluate.run(
        settings.Evaluate(catalog=f"{bucket}/catalog", truth=f"{sky}/truth.parquet", radius_arcsec=3.0)
    )
    truth = pq.read_table(storage.open_arrow(f"{sky}/truth.parquet"))
    lsbgs = sum(truth["label"].to_pylist())
    assert judged.figures["tp"] + judged.figures["fn"] == lsbgs
