"""DeepShadows: which detections of a sky survey are real low-surface-brightness galaxies?"""

__version__ = "0.1.0"
