"""`deepshadows reprocess` for a raw submission: ray job submit --working-dir jobs -- python reprocess.py [flags]."""

import sys

from deepshadows.cli import main

main(["reprocess", *sys.argv[1:]])
