"""What a user may set, one frozen class a verb: the flags, the TOML keys and the stored record are these fields.

Building one touches no disk, clock, network or hardware. Imports only `outcomes`.
"""

from __future__ import annotations

import re
import tomllib
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

from deepshadows.outcomes import UsageError

Precision = Literal["exact", "fast"]
Survey = Literal["des", "hsc"]
TileSurvey = Literal["des", "legacy", "hsc", "kids", "panstarrs", "sdss", "rubin"]
"""Surveys whose tiles are known by name; see `sky.presets`."""
ImageForm = Literal["auto", "npz", "npy", "pictures", "fits", "webdataset", "hdf5", "parquet"]
"""What finished images come as; see `sky.image_sources`."""
ExperimentName = Literal["baselines", "splits", "label_noise", "transfer", "three_classes", "grad_cam", "real_features"]
Trainable = Literal["all", "head", "last_block", "output"]
"""Layers that learn: all; the two dense ones; these and the last convolution with its batch norm; or the last alone, by
logistic regression in one epoch."""
HeatMap = Literal["hires-cam", "grad-cam"]
"""How it is shown what a network looked at: see `model.explanation`."""
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(gt=0, lt=1)]
VersionName = Annotated[str, Field(pattern=r"^v\d{4,}$")]
ARGUMENT: JsonDict = {"argument": True}
"""`json_schema_extra` of a field that the command line takes by its place, without a flag."""
PATH: JsonDict = {"path": "any"}
"""`json_schema_extra` of a field that names a path; of the next two, one that may be a name instead."""
WEIGHTS: JsonDict = {"path": "weights"}
RECIPE_FILE: JsonDict = {"path": "recipe"}
DEFAULT_NETWORK = "deepshadows-v2"
"""What comes with the package; see `model.shipped`."""
_OTHER_FLAGS = {"from_checkpoint": "--from"}
_OTHER_KEYS = {flag.removeprefix("--"): field for field, flag in _OTHER_FLAGS.items()}


NO_PASSWORD = (
    "leave user and password out of the address, it is written into records and logs; give them through the environment"
)


def holds_password(text: object) -> bool:
    """True for an address such as s3://key:secret@bucket."""
    return isinstance(text, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*@", text) is not None


class Settings(BaseModel):
    """Frozen, keyword-only, refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_not_booleans(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, bool) and name in cls.model_fields and cls.model_fields[name].annotation is not bool:
                raise ValueError(f"{name}: true or false is not a value of it")
        return values

    @model_validator(mode="before")
    @classmethod
    def _addresses_hold_no_password(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            if any(holds_password(text) for text in (value if isinstance(value, list | tuple) else [value])):
                raise ValueError(f"{name}: {NO_PASSWORD}")
        return values

    @classmethod
    def resolve(cls, values: dict[str, Any], source: str) -> Self:
        """Validate `values`; a wrong one is a `UsageError` that names it and `source`."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [
                f"{'.'.join(str(part) for part in item['loc']) or 'settings'}: {item['msg']}"
                for item in error.errors(include_input=False, include_url=False)
            ]
            raise UsageError(f"{source}: " + "; ".join(lines)) from error


def flag_of(field: str) -> str:
    """The flag of a settings field."""
    return _OTHER_FLAGS.get(field, "--" + field.replace("_", "-"))


def is_argument(info: FieldInfo) -> bool:
    """True for a field that the command line takes by its place."""
    return isinstance(info.json_schema_extra, dict) and bool(info.json_schema_extra.get("argument"))


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """A settings file as a dictionary of fields: a key is a flag or a field, and `-` reads as `_`."""
    try:
        return {_OTHER_KEYS.get(key, key.replace("-", "_")): value for key, value in tomllib.loads(text).items()}
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, numbers of thousands of digits, deep nesting
        raise UsageError(f"{source}: not valid TOML: {error}") from error


class Cluster(Settings):
    """Where Ray runs."""

    address: str | None = Field(None, description="Ray cluster to join; without it a local one is started.")


class Shared(Settings):
    """Flags that every verb takes, so that one settings file serves all; here as they are where a verb has no use."""

    precision: Precision | None = Field(None, description="Taken by every verb; without effect here.")
    address: str | None = Field(None, description="Taken by every verb; without effect here.")


class Simulate(Cluster):
    """Make a survey whose truth is known: g, r, i, z tiles with their truth table, or labelled cut-outs."""

    survey: Survey = Field("des", description="Survey whose scale, seeing and depth are imitated.")
    tiles: NotNegative = Field(4, description="Number of tiles.")
    cutouts: NotNegative = Field(0, description="Instead of tiles: labelled cut-outs of each class.")
    seed: NotNegative = Field(1, description="Seed; the same seed gives the same bytes.")
    tile_size_pix: Annotated[int, Field(ge=512, le=10_000)] = Field(2048, description="Side of a tile.")
    fov_arcsec: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Field of view of the cut-outs; without it, the network's 33.5."
    )
    output: str = Field(
        description="Folder that receives tiles/, truth.parquet and the tile index.", json_schema_extra=PATH
    )


class TileReading(Settings):
    """How FITS tiles are to be understood where their headers do not say."""

    zero_point: float | None = Field(None, description="Magnitude zero point, where headers state none.")
    survey: TileSurvey | None = Field(
        None, description="Survey of the tiles: its file names, filters, zero point and pixel scale."
    )


class Detect(Cluster, TileReading):
    """Find sources on tiles and measure SExtractor-named columns with sep."""

    tiles: str = Field(description="Folder of FITS tiles, local or s3://.", json_schema_extra=PATH)
    output: str = Field(description="Parquet file of detections.", json_schema_extra=PATH)
    cuts: Literal["none", "des"] = Field("none", description="Parent-sample cuts; rejects are counted.")
    threshold_sigma: Annotated[float, Field(gt=0)] = Field(1.5, description="Threshold per pixel, in sigma.")
    min_area_pix: Positive = Field(20, description="Smallest number of connected pixels.")
    seeing_arcsec: Annotated[float, Field(gt=0)] | None = Field(
        None, description="FWHM of the PSF in i; without it, that of each tile's stars."
    )


class Columns(Settings):
    """The user's own names for the columns of a detection table."""

    id_column: str = Field("object_id", description="Column of the identifier.")
    ra_column: str = Field("ra", description="Column of right ascension, ICRS degrees.")
    dec_column: str = Field("dec", description="Column of declination, ICRS degrees.")


class ImageReading(Settings):
    """How finished images are to be understood: what they are, and what their files do not say."""

    form: ImageForm = Field("auto", description="What the images come as; auto goes by the suffix of the files.")
    fov_arcsec: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Field of view of images whose files state none."
    )
    stretch: str = Field("des-1", description="Stretch: that of finished colour images, or to be given to fluxes.")
    bands: Annotated[str, Field(pattern="^[griz]{3}$")] = Field(
        "grz", description="Bands; the reddest is the red channel."
    )
    image_column: str = Field("image", description="Column, or HDF5 dataset, of the images.")
    label_column: str = Field("label", description="Column of the label.")
    lsbg_class: tuple[str, ...] = Field(
        ("1", "lsbg", "lsbgs"), description="Label or folder that means LSBG; may be repeated."
    )
    artifact_class: tuple[str, ...] = Field(
        ("0", "artifact", "artifacts"), description="Label or folder that means artifact; may be repeated."
    )


class Cutouts(Cluster, Columns, TileReading, ImageReading):
    """Turn tiles and detections, or images as users have them, into cut-out shards; a truth table gives labels."""

    input: str = Field(
        description="Folder of FITS tiles; or images: npz, npy, JPEG, PNG or FITS folders, tar, HDF5, Parquet.",
        json_schema_extra=PATH,
    )
    detections: str | None = Field(
        None, description="Detections to cut from tiles (Parquet, FITS or CSV).", json_schema_extra=PATH
    )
    truth: str | None = Field(
        None, description="Truth table that gives the labels, matched by position.", json_schema_extra=PATH
    )
    radius_arcsec: Annotated[float, Field(gt=0)] = Field(3.0, description="Match radius for --truth.")
    unmatched: Literal["artifact", "skip"] = Field(
        "artifact",
        description="What the truth does not list: an artifact, or left out where the truth is not complete.",
    )
    output: str = Field(description="Folder that receives the shards.", json_schema_extra=PATH)
    shard_rows: Positive = Field(10_000, description="Rows of one shard.")


_FOR_DATASETS = {"what", "output", "address", "url", "requests_per_s", "retries", "backoff_s", "timeout_s"}
"""What `fetch datasets` heeds of the settings of `Fetch`."""


class Fetch(Cluster, Columns):
    """Download the public lists (fetch datasets), or images from the Legacy Surveys viewer (fetch cutouts)."""

    what: Literal["datasets", "cutouts"] = Field(
        description="datasets for the lists of the paper, cutouts for images of --positions.",
        json_schema_extra=ARGUMENT,
    )
    output: str = Field(description="Folder that receives the files.", json_schema_extra=PATH)
    positions: str | None = Field(
        None, description="Objects to fetch images of (Parquet, FITS or CSV).", json_schema_extra=PATH
    )
    label: Annotated[int, Field(ge=0, le=1)] | None = Field(
        None, description="Label of every position, 1 LSBG or 0 artifact, where the table has no column label."
    )
    survey: Survey = Field("des", description="Survey whose layer, field and stretch are meant.")
    format: Literal["jpeg", "fits"] = Field("jpeg", description="Pictures, or fluxes in nanomaggies.")
    layer: str | None = Field(None, description="Layer of the viewer; without it, that of the survey.")
    zoom: Annotated[int, Field(ge=8, le=18)] | None = Field(
        None, description="Zoom of the viewer; without it 15 for jpeg, 14 (native pixels) for fits."
    )
    pixscale_arcsec: Annotated[float, Field(gt=0)] | None = Field(None, description="Pixel scale instead of a zoom.")
    size_pix: Annotated[int, Field(ge=16, le=3000)] | None = Field(
        None, description="Side of an image; without it 256 for jpeg, 128 for fits."
    )  # the viewer cuts sizes above 3000 down to that without a word
    bands: Annotated[str, Field(pattern="^[ugrizYy]+$")] | None = Field(
        None, description="Bands to ask for, such as grz; without it the layer's for jpeg, grz for fits."
    )
    url: str | None = Field(None, description="Server to ask instead of the public one.")
    requests_per_s: Annotated[float, Field(gt=0, le=100)] = Field(4.0, description="Most requests in a second, in all.")
    threads: Annotated[int, Field(gt=0, le=32)] = Field(4, description="Requests under way at one time.")
    retries: NotNegative = Field(5, description="Further tries before an object counts as failed.")
    backoff_s: Annotated[float, Field(ge=0)] = Field(2.0, description="Pause before the second try; doubles each time.")
    timeout_s: Annotated[float, Field(gt=0)] = Field(60.0, description="Longest time for one answer.")
    shard_rows: Positive = Field(10_000, description="Rows of one shard.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.what == "cutouts" and self.positions is None:
            raise ValueError("fetch cutouts needs --positions")
        if self.what == "datasets" and (alien := sorted(self.model_fields_set - _FOR_DATASETS)):
            raise ValueError(f"fetch datasets takes no {', '.join(alien)}")
        if self.zoom is not None and self.pixscale_arcsec is not None:
            raise ValueError("give zoom or pixscale_arcsec, not both")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url {self.url}: an address begins with http:// or https://")
        return self


class Recipe(Settings):
    """How a network is trained. The defaults are the paper's recipe (arXiv:2011.12437, section 4)."""

    name: str = Field("paper", description="Name recorded in the card.")
    optimizer: Literal["adadelta", "adamw"] = Field("adadelta", description="Update rule.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(0.1, description="Peak learning rate.")
    schedule: Literal["constant", "cosine"] = Field("constant", description="Learning rate over the epochs.")
    epochs: Positive = Field(100, description="Passes over the training set.")
    batch_size: Positive = Field(64, description="Images in one update, over all workers.")
    l2_conv: Annotated[float, Field(ge=0)] = Field(0.13, description="L2 on convolution kernels (Keras sense).")
    l2_dense: Annotated[float, Field(ge=0)] = Field(0.12, description="L2 on the first dense kernel.")
    augment: bool = Field(False, description="Random flips and quarter turns.")
    observe_anew: bool = Field(
        False, description="Random shifts, resampling, tint, noise and JPEG, as other layers and telescopes would give."
    )
    refresh_norms: bool = Field(False, description="Measure batch-norm statistics anew, without dropout, each epoch.")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Of products in a training step; bfloat16 is faster where the processor has it."
    )
    weights: Literal["float32", "float16"] = Field(
        "float32", description="Type of the weights in the checkpoint; float16 takes half the bytes."
    )
    keep: Literal["last", "best"] = Field("last", description="Weights of which epoch, by validation loss.")
    patience: NotNegative = Field(0, description="Stop after so many epochs without a lower validation loss; 0: never.")
    trainable: Trainable = Field("all", description="Layers that learn; output: the last, by logistic regression.")
    seed: NotNegative = Field(1, description="Seed of initial weights, order and split.")
    validation_fraction: Probability = Field(0.15, description="Share of sky blocks held out to validate.")
    split: Literal["sky", "random"] = Field("sky", description="Split by blocks of sky, or at random as the paper.")
    threads: NotNegative = Field(0, description="CPU threads of a worker; 0 shares the cores out evenly.")
    fov_arcsec: Annotated[float, Field(gt=0)] = Field(33.5, description="Field of view that the cut-outs must have.")
    stretch: str = Field("des-1", description="Stretch that the cut-outs must have.")


RECIPES = {
    "paper": Recipe(),
    "2020": Recipe(name="2020", precision="bfloat16", weights="float16"),
    "short": Recipe(
        name="short",
        optimizer="adamw",
        learning_rate=3e-4,
        schedule="cosine",
        epochs=10,
        batch_size=32,
        l2_conv=1e-4,
        l2_dense=1e-4,
        augment=True,
        refresh_norms=True,
        keep="best",
    ),
    "v2": Recipe(
        name="v2",
        optimizer="adamw",
        learning_rate=5e-4,
        schedule="cosine",
        epochs=12,
        l2_conv=1e-4,
        l2_dense=1e-4,
        augment=True,
        observe_anew=True,
        refresh_norms=True,
        precision="bfloat16",
        weights="float16",
        keep="best",
    ),
    "finetune": Recipe(
        name="finetune",
        optimizer="adamw",
        learning_rate=1e-4,
        epochs=60,
        batch_size=16,
        l2_conv=1e-4,
        l2_dense=1e-4,
        augment=True,
        refresh_norms=True,
        keep="best",
        patience=10,
        validation_fraction=0.25,
    ),
    "finetune_few": Recipe(name="finetune_few", epochs=1, trainable="output", keep="best", validation_fraction=0.25),
    "finetune_paper": Recipe(name="finetune_paper", learning_rate=0.005, epochs=30, batch_size=16),
}
"""Recipes that go by name; `jobs/recipe_*.toml` hold the same, to start your own from."""
_RECIPE = f"{', '.join(RECIPES)}, or a TOML file like those in jobs/."


class Train(Cluster):
    """Train the network on labelled cut-outs."""

    cutouts: str = Field(description="Folder of labelled cut-out shards.", json_schema_extra=PATH)
    output: str = Field(description="Folder that receives the checkpoint.", json_schema_extra=PATH)
    recipe: str = Field("paper", description=_RECIPE, json_schema_extra=RECIPE_FILE)
    from_checkpoint: str | None = Field(None, description="Start from these weights.", json_schema_extra=WEIGHTS)
    workers: Positive = Field(1, description="Training processes.")
    min_workers: Positive | None = Field(None, description="Fewest that go on where nodes are lost; else all.")
    no_progress_s: Positive = Field(900, description="Seconds without room for its workers until a training gives up.")
    gpus: bool = Field(False, description="One GPU a worker.")


class Finetune(Cluster):
    """Train a network further on labelled cut-outs of your own survey, and tell what that bought."""

    cutouts: str = Field(
        description="Folder of labelled cut-out shards; 20 rows are the least.", json_schema_extra=PATH
    )
    output: str = Field(description="Folder that receives the checkpoint.", json_schema_extra=PATH)
    from_checkpoint: str = Field(
        DEFAULT_NETWORK,
        description="Network to start from: name of shipped weights, or folder.",
        json_schema_extra=WEIGHTS,
    )
    recipe: str = Field("finetune", description=_RECIPE, json_schema_extra=RECIPE_FILE)
    layers: Trainable | None = Field(None, description="Layers that learn; without it, those that the recipe names.")
    fov_arcsec: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Transfer the network to cut-outs of this field although its card states another; recorded."
    )
    stretch: str | None = Field(
        None, description="Transfer the network to cut-outs of this stretch although its card states another; recorded."
    )
    workers: Positive = Field(1, description="Training processes.")
    min_workers: Positive | None = Field(None, description="Fewest that go on where nodes are lost; else all.")
    no_progress_s: Positive = Field(900, description="Seconds without room for its workers until a training gives up.")
    gpus: bool = Field(False, description="One GPU a worker.")


class Explain(Cluster):
    """Show what the network looked at: heat maps of chosen objects (HiResCAM or Grad-CAM), as pictures."""

    checkpoint: str = Field(description="Checkpoint to explain.", json_schema_extra=WEIGHTS)
    cutouts: str = Field(description="Cut-outs, labelled or not: shards or .npz.", json_schema_extra=PATH)
    ids: tuple[str, ...] = Field((), description="Objects to explain; may be repeated, or several between commas.")
    top: Positive = Field(12, description="Without ids: so many objects of highest p_lsbg.")
    method: HeatMap = Field("hires-cam", description="Heat maps place by place, or by channel as in the paper.")
    precision: Precision = Field("exact", description="Arithmetic of the network for p_lsbg; heat maps are fp32.")
    output: str = Field(description="Folder that receives the pictures and explain.parquet.", json_schema_extra=PATH)


class Evaluate(Cluster):
    """Judge a checkpoint on labelled cut-outs, or a catalogue against a truth table."""

    checkpoint: str | None = Field(None, description="Checkpoint to judge.", json_schema_extra=WEIGHTS)
    cutouts: str | None = Field(None, description="Labelled cut-outs: shards or .npz.", json_schema_extra=PATH)
    catalog: str | None = Field(None, description="Catalogue to judge.", json_schema_extra=PATH)
    truth: str | None = Field(None, description="Truth table for --catalog.", json_schema_extra=PATH)
    radius_arcsec: Annotated[float, Field(gt=0)] = Field(1.0, description="Match radius for --truth.")
    output: str | None = Field(
        None,
        description="With --catalog: PNG of completeness by brightness and size.",
        json_schema_extra=PATH,
    )
    purity: Probability | None = Field(None, description="Choose the threshold that reaches this purity.")
    completeness: Probability | None = Field(None, description="Choose the threshold that reaches this completeness.")
    prevalence: Probability | None = Field(
        None, description="Correct probabilities to this share of LSBGs among detections, and tell the purity there."
    )
    threshold: Probability | None = Field(
        None,
        description="Threshold on p_lsbg as it is stored, also with a prevalence; without it, the card's on "
        "probabilities, corrected where there is a prevalence.",
    )
    precision: Precision = Field("exact", description="Arithmetic of the network.")

    @model_validator(mode="after")
    def _one_subject(self) -> Self:
        given = {name for name in ("checkpoint", "cutouts", "catalog", "truth") if getattr(self, name)}
        if given not in ({"checkpoint", "cutouts"}, {"catalog", "truth"}):
            raise ValueError("give --checkpoint with --cutouts, or --catalog with --truth")
        if self.output is not None and self.catalog is None:
            raise ValueError("--output is the figure of --catalog with --truth; --checkpoint draws none")
        return self

    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        if sum(value is not None for value in (self.purity, self.completeness, self.threshold)) > 1:
            raise ValueError("give one of --purity, --completeness and --threshold")
        return self


class Scoring(Columns, TileReading):
    """What is scored, by which network, and how."""

    input: str = Field(description="Folder of cut-out shards, or of FITS tiles.", json_schema_extra=PATH)
    detections: str | None = Field(
        None, description="Detections on the tiles (Parquet, FITS or CSV).", json_schema_extra=PATH
    )
    checkpoint: str = Field(
        DEFAULT_NETWORK, description="Name of shipped weights, or folder of a network.", json_schema_extra=WEIGHTS
    )
    precision: Precision = Field("fast", description="exact: fp32 reference; fast: checked against it.")
    unit_rows: Positive | None = Field(
        None,
        description="Most rows of one work unit; without it 20,000 of a shard or 100,000 on a tile.",
    )
    unit_mib: Positive | None = Field(None, description="Most MiB of images of one work unit, 12 KiB each.")
    batch_size: Positive = Field(256, description="Images in one call of the network.")
    scorers: NotNegative = Field(0, description="Scorer actors; 0 takes one a GPU, or one on a CPU node.")
    threads: NotNegative = Field(0, description="CPU threads of a scorer; 0 shares the cores out evenly.")
    cut_threads: Positive = Field(1, description="CPU threads beside them that read and cut one tile.")
    retries: NotNegative = Field(2, description="Further tries before a unit is quarantined.")
    no_progress_s: Positive = Field(900, description="Seconds without a finished unit after which a run gives up.")
    fov_arcsec: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Feed shards of this field although the card states another; recorded."
    )


class Classify(Cluster, Scoring):
    """Score every detection of a survey; a rerun of the same command does what is missing."""

    output: str = Field(description="Run directory.", json_schema_extra=PATH)


class Catalogue(Settings):
    """How a version of a catalogue is written."""

    catalog: str = Field(description="Root of the catalogue.", json_schema_extra=PATH)
    duplicates: Literal["fail", "first"] = Field("fail", description="What to do with one id in several units.")
    partition_rows: Positive = Field(1_000_000, description="Most rows of one HEALPix partition.")
    margin_arcsec: Annotated[float, Field(gt=0, le=60)] = Field(
        10.0, description="Width of the margin that is kept around each partition, for cross-matches."
    )


class Select(Settings):
    """Write the objects of a catalogue that a condition and a cone on the sky select to one file."""

    catalog: str = Field(description="Root of the catalogue, local or s3://.", json_schema_extra={**ARGUMENT, **PATH})
    where: str | None = Field(None, description='Condition in SQL, such as "p_lsbg > 0.9 AND flags = 0".')
    cone: str | None = Field(None, description="RA_DEG,DEC_DEG,RADIUS_ARCSEC (ICRS).")
    columns: str | None = Field(None, description="Columns to write, between commas; without it, all.")
    version: VersionName | None = Field(None, description="Version to read; without it, the current one.")
    output: str = Field(description="File to write: .parquet, .fits or .vot.", json_schema_extra=PATH)


class Versions(Settings):
    """List the versions of a catalogue; make another one current; remove old ones."""

    catalog: str = Field(description="Root of the catalogue, local or s3://.", json_schema_extra={**ARGUMENT, **PATH})
    rollback: VersionName | None = Field(None, description="Version to make current again, such as v0003.")
    expire: Positive | None = Field(None, description="Remove all versions but the current and so many of the newest.")
    dry_run: bool = Field(False, description="With --expire: tell what would be removed, remove nothing.")

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        if self.rollback is not None and self.expire is not None:
            raise ValueError("give --rollback or --expire, not both")
        if self.dry_run and self.expire is None:
            raise ValueError("--dry-run goes with --expire")
        return self


class Publish(Cluster, Catalogue):
    """Turn finished runs into a new version of a HATS catalogue."""

    run: tuple[str, ...] = Field(min_length=1, description="Run directory; may be repeated.", json_schema_extra=PATH)


class Reprocess(Cluster, Scoring, Catalogue):
    """Bring a catalogue up to date with its input and network: score what changed, rewrite what that touches."""

    threshold: Probability | None = Field(
        None, description="p_lsbg across which an object changes side; without it, the card's."
    )
    fail_on_drift: bool = Field(False, description="Exit with 5 where the drift check alarms; the version stays.")


class Status(Settings):
    """Tell how far a run of classify has come, from what its store holds; it may run anywhere."""

    run: str = Field(description="Run directory, local or s3://.", json_schema_extra={**ARGUMENT, **PATH})


class Report(Settings):
    """Make one page about a run or a catalogue, for people: counts, sky, scores, images, flags, provenance."""

    source: str = Field(
        description="Run, catalogue (its current version), or one version of it (CAT/v0002).",
        json_schema_extra={**ARGUMENT, **PATH},
    )
    output: str = Field(description="HTML file; it needs no other file and no network.", json_schema_extra=PATH)
    truth: str | None = Field(
        None, description="Truth table: adds purity and completeness, matched by position.", json_schema_extra=PATH
    )
    radius_arcsec: Annotated[float, Field(gt=0)] = Field(1.0, description="Match radius for --truth.")
    prevalence: Probability | None = Field(
        None,
        description="Share of LSBGs among the survey's detections: purity and expected numbers are told for it.",
    )
    threshold: Probability = Field(0.5, description="Candidates have at least this p_lsbg.")
    gallery: NotNegative = Field(24, description="Objects shown of each kind; their images are read from the input.")
    usd_per_hour: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Price of all machines of the run together: adds what it cost."
    )
    seed: NotNegative = Field(1, description="Seed of what is shown at random.")


class Experiments(Cluster):
    """Repeat the paper's experiments: one report, its figures, and every number beside the paper's."""

    names: tuple[ExperimentName, ...] = Field(
        (), description="Experiments to run; without names, all.", json_schema_extra=ARGUMENT
    )
    scale: Literal["cpu", "paper"] = Field("cpu", description="cpu: smaller, within the hour; paper: full protocol.")
    cutouts: str | None = Field(
        None, description="Labelled shards; without them, a DES-like sample is simulated.", json_schema_extra=PATH
    )
    second: str | None = Field(
        None, description="Those of the second survey; without them, an HSC-like sample.", json_schema_extra=PATH
    )
    features: str | None = Field(
        None, description="Real feature table for real_features (CSV, FITS or Parquet).", json_schema_extra=PATH
    )
    split: Literal["sky", "random"] = Field("sky", description="Split by blocks of sky, or at random as the paper.")
    seed: NotNegative = Field(1, description="Seed of samples, splits and weights; splits has six of its own.")
    threads: Positive = Field(1, description="CPU threads of one training; as many trainings run as there is room.")
    gpus: bool = Field(False, description="Train on GPUs, four trainings on each.")
    output: str = Field(
        description="Folder of the report; the same command goes on with what is there.", json_schema_extra=PATH
    )


class Quickstart(Cluster):
    """Simulate a small survey, classify, publish, and show what was found."""

    output: str = Field("quickstart", description="Folder that receives everything.", json_schema_extra=PATH)
    seed: NotNegative = Field(1, description="Seed of the simulated sky.")
    checkpoint: str = Field(
        DEFAULT_NETWORK, description="Name of shipped weights, or folder of a network.", json_schema_extra=WEIGHTS
    )
    precision: Precision = Field("fast", description="exact: fp32 reference; fast: checked against it.")
