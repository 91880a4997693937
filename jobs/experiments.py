"""`deepshadows experiments` for raw submission: ray job submit --working-dir jobs -- python experiments.py [flags]."""

import sys

from deepshadows.cli import main

main(["experiments", *sys.argv[1:]])
