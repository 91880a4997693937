"""`deepshadows report` for a raw submission: ray job submit --working-dir jobs -- python report.py [flags]."""

import sys

from deepshadows.cli import main

main(["report", *sys.argv[1:]])
