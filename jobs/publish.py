"""`deepshadows publish` for a raw submission: ray job submit --working-dir jobs -- python publish.py [flags]."""

import sys

from deepshadows.cli import main

main(["publish", *sys.argv[1:]])
