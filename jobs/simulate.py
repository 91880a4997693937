"""`deepshadows simulate` for a raw submission: ray job submit --working-dir jobs -- python simulate.py [flags]."""

import sys

from deepshadows.cli import main

main(["simulate", *sys.argv[1:]])
