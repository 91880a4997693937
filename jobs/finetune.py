"""`deepshadows finetune` for a raw submission: ray job submit --working-dir jobs -- python finetune.py [flags]."""

import sys

from deepshadows.cli import main

main(["finetune", *sys.argv[1:]])
