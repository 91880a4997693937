"""`deepshadows explain` for a raw submission: ray job submit --working-dir jobs -- python explain.py [flags]."""

import sys

from deepshadows.cli import main

main(["explain", *sys.argv[1:]])
