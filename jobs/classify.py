"""`deepshadows classify` for a raw submission: ray job submit --working-dir jobs -- python classify.py [flags]."""

import sys

from deepshadows.cli import main

main(["classify", *sys.argv[1:]])
