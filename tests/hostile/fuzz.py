"""Coverage-guided search for a file that a reader does not survive, for a bounded time; needs `pip install atheris`.

    python -m tests.hostile.fuzz fits -max_total_time=300          # or: all -max_total_time=60

Begins with a good file of the kind. Further flags are libFuzzer's (-rss_limit_mb, -max_len, a folder of inputs ...).
What a reader does not answer with data or one of our own errors goes to ./crash-*, memory beyond the limit to ./oom-*.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["deepshadows", "astropy.io.fits", "tomllib"]):
    from tests.hostile.readers import READERS

from deepshadows.outcomes import Failure

MOST_BYTES = 100_000
LIMITS = ("-rss_limit_mb=3000", "-timeout=20", "-print_final_stats=1")


def main() -> None:
    name, *flags = sys.argv[1:] or ["all"]
    if name == "all":
        failed = [
            each for each in READERS if subprocess.run([sys.executable, "-m", __spec__.name, each, *flags]).returncode
        ]
        sys.exit(f"not survived: {', '.join(failed)}" if failed else 0)
    reader = READERS[name]
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        place, seeds, made = (Path(scratch, part) for part in ("place", "seeds", "made"))
        for folder in (place, seeds, made):
            folder.mkdir()
        (seeds / "good").write_bytes(reader.good(made))

        def read(data: bytes) -> None:
            reader.lay(place, data)
            try:
                reader.read(place)
            except Failure as error:
                assert str(error)

        atheris.Setup([sys.argv[0], *LIMITS, f"-max_len={MOST_BYTES}", *flags, str(seeds)], read)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
