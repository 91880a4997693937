"""The parts of `report`: what is reported, its totals, its pictures, its page. No Ray, no torch."""
