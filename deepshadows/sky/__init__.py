"""What the sky gives us -- tiles, detections, cut-outs, simulation: arrays and astropy; no Ray, no torch."""
