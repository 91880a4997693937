"""`deepshadows evaluate` for a raw submission: ray job submit --working-dir jobs -- python evaluate.py [flags]."""

import sys

from deepshadows.cli import main

main(["evaluate", *sys.argv[1:]])
