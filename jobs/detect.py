"""`deepshadows detect` for a raw submission: ray job submit --working-dir jobs -- python detect.py [flags]."""

import sys

from deepshadows.cli import main

main(["detect", *sys.argv[1:]])
