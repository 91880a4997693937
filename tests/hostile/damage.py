"""Damage to files, as hypothesis draws it: bytes changed, cut off, doubled; FITS cards with odd values."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

Change = Callable[[bytes], bytes]
CARD = 80
ODD_VALUES = (
    *("-1", "0", "2", "3", "999999999999", "1E400", "-1E-400", "NaN", "T", "''", "'x'", "1,2", "(1, 2)"),
    *("99999999999999999999999", "'../../../etc/passwd'", "'\u00e9'", "'" + "x" * 60 + "'"),
)
KEYWORDS = (
    *("SIMPLE", "XTENSION", "BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "NAXIS3", "PCOUNT", "GCOUNT", "TFIELDS", "EXTNAME"),
    *(
        "ZIMAGE",
        "ZCMPTYPE",
        "ZBITPIX",
        "ZNAXIS",
        "ZNAXIS1",
        "ZNAXIS2",
        "ZTILE1",
        "ZTILE2",
        "ZQUANTIZ",
        "TFORM1",
        "TTYPE1",
    ),
    *("BSCALE", "BZERO", "BAND", "BANDS", "BUNIT", "MAGZERO", "SATURATE", "SATBIT", "TILENAME", "MP_SAT", "MP_BAD"),
    *(
        "CTYPE1",
        "CRVAL1",
        "CRVAL2",
        "CRPIX1",
        "CDELT1",
        "CDELT2",
        "CD1_1",
        "PC1_1",
        "CUNIT1",
        "RADESYS",
        "LONPOLE",
        "WCSAXES",
    ),
    *("A_ORDER", "BP_ORDER", "PV2_1", "END", "CONTINUE"),
)


def _flipped(flips: list[tuple[float, int]]) -> Change:
    def change(data: bytes) -> bytes:
        out = bytearray(data)
        for where, value in flips:
            out[int(where * (len(out) - 1))] = value
        return bytes(out)

    return change


def _cut(share: float) -> Change:
    return lambda data: data[: int(share * len(data))]


def _doubled(first: float, last: float) -> Change:
    def change(data: bytes) -> bytes:
        low, high = sorted((int(first * len(data)), int(last * len(data))))
        return data[:high] + data[low:]

    return change


def _card(keyword: str, value: str, choice: float) -> Change:
    """One card more or changed; where there is none of that name, the place of a card goes to it."""

    def change(data: bytes) -> bytes:
        starts = [at for at in range(0, len(data) - CARD, CARD) if data[at : at + 8].rstrip() == keyword.encode()]
        if not starts:
            starts = [at for at in range(0, min(len(data), 2880 * 4) - CARD, CARD) if data[at + 8 : at + 9] == b"="][5:]
        if not starts:
            return data
        at = starts[int(choice * (len(starts) - 1))]
        card = f"{keyword:8}= {value:>20}".encode("latin-1")[:CARD].ljust(CARD)
        return data[:at] + card + data[at + CARD :]

    return change


shares = st.floats(0, 1)
byte_changes = st.one_of(
    st.builds(_flipped, st.lists(st.tuples(shares, st.integers(0, 255)), min_size=1, max_size=8)),
    st.builds(_cut, shares),
    st.builds(_doubled, shares, shares),
)
front_changes = st.builds(
    _flipped, st.lists(st.tuples(st.floats(0, 0.05), st.integers(0, 255)), min_size=1, max_size=8)
)
back_changes = st.builds(_flipped, st.lists(st.tuples(st.floats(0.9, 1), st.integers(0, 255)), min_size=1, max_size=8))
card_changes = st.builds(_card, st.sampled_from(KEYWORDS), st.sampled_from(ODD_VALUES), shares)


def changes(*kinds: st.SearchStrategy[Change]) -> st.SearchStrategy[list[Change]]:
    """One to three changes, one after the other."""
    return st.lists(st.one_of(byte_changes, front_changes, back_changes, *kinds), min_size=1, max_size=3)


def damaged(data: bytes, wanted: list[Change]) -> bytes:
    for change in wanted:
        data = change(data) or data
    return data
