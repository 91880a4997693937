"""What makes a survey run whole -- plan, fingerprint, lease, commit once, manifest; no Ray, no torch."""
