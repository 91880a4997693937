"""`deepshadows cutouts` for a raw submission: ray job submit --working-dir jobs -- python cutouts.py [flags]."""

import sys

from deepshadows.cli import main

main(["cutouts", *sys.argv[1:]])
