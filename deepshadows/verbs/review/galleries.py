"""Galleries of objects, in HTML: each image a link to the same place in the Legacy Surveys viewer. No I/O."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image as Pillow

from deepshadows.schema import Flag
from deepshadows.sky.viewer import page_url
from deepshadows.verbs import page
from deepshadows.verbs.page import Html, text
from deepshadows.verbs.review.images import Image, Wanted

MOST_REASONS = 30
"""Quarantined units that are told one by one; the others are counted by reason."""
LONGEST_REASON = 300
GALLERY_TITLES = {
    "top": ("Highest scores", "the objects of highest p_lsbg"),
    "borderline": ("Borderline", "the objects whose p_lsbg is closest to the threshold"),
    "random": ("Random", "scored objects drawn at random: what the survey looks like to the network"),
    "out_of_domain": ("Out of domain", "drawn at random from the scored objects that are unlike the training images"),
}
ABOUT_IMAGES = (
    "Images are those that the network saw, north up, east left; below each: p_lsbg, its 1-sigma error where the "
    "network states one, the identifier, ra and dec in degrees, and the flags.",
    "Each image is a link to the same place in the Legacy Surveys viewer, which needs a network.",
)


def gallery(name: str, rows: Sequence[Mapping[str, Any]], found: Mapping[Wanted, Image | str], stretch: str) -> Html:
    """Images of objects with what is known of them, each a link to the same place in the Legacy Surveys viewer."""
    title, what = GALLERY_TITLES[name]
    head = [Html(f"<h3>{text(title)}</h3>"), page.paragraph(f"{len(rows)}: {what}.", "notes")]
    if not rows:
        return page.join([head[0], page.paragraph("None.")])
    images = [found.get(wanted(row), "it was not looked for") for row in rows]
    items = (_item(row, image, stretch) for row, image in zip(rows, images, strict=True))
    return page.join([*head, Html(f'<ul class="gallery">{page.join(items)}</ul>'), page.notes(_missing(images))])


def wanted(row: Mapping[str, Any]) -> Wanted:
    return Wanted(row["object_id"], row["ra"], row["dec"], row["unit"], row["run"])


def _missing(images: Sequence[Image | str]) -> list[str]:
    reasons = Counter(shortened(image) for image in images if isinstance(image, str))
    return [f"{count} without an image: {reason}" for reason, count in reasons.most_common(MOST_REASONS)]


def shortened(reason: str) -> str:
    return reason if len(reason) <= LONGEST_REASON else f"{reason[: LONGEST_REASON - 1]}…"


def _item(row: Mapping[str, Any], image: Image | str, stretch: str) -> Html:
    score = f"{row['p_lsbg']:.3f}" + ("" if row["p_lsbg_err"] is None else f" ± {row['p_lsbg_err']:.3f}")
    placed = row["ra"] is not None and row["dec"] is not None
    at = f"ra {row['ra']:.5f}, dec {row['dec']:+.5f}" if placed else "no position"
    name = f"object {row['object_id']}"
    if isinstance(image, str):
        shown = Html(f'<span class="gone">no image{"; open the place" if placed else ""}</span>')
    else:
        alt = text(f"Cut-out of {name}, p_lsbg {score}, {at}")
        shown = Html(f'<img src="{page.data_url(_png(image))}" alt="{alt}">')
    if placed:
        label = text(f"{name}, p_lsbg {score}: open {at} in the Legacy Surveys viewer")
        shown = Html(f'<a href="{text(page_url(row["ra"], row["dec"], stretch))}" aria-label="{label}">{shown}</a>')
    flags = " ".join(Flag.names(row["flags"]))
    lines = [text(str(row["object_id"])), text(at.replace("ra ", "").replace("dec ", "")), text(flags)]
    return Html(f"<li>{shown}<p><b>{text(score)}</b><br>{_broken(lines)}</p></li>")


def _broken(lines: Sequence[Html]) -> Html:
    return Html("<br>".join(line for line in lines if line))


def _png(image: Image) -> bytes:
    sink = io.BytesIO()
    Pillow.fromarray(image).save(sink, "PNG", optimize=True)
    return sink.getvalue()
