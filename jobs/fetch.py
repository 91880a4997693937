"""`deepshadows fetch` for a raw submission: ray job submit --working-dir jobs -- python fetch.py [flags]."""

import sys

from deepshadows.cli import main

main(["fetch", *sys.argv[1:]])
