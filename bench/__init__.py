"""Intake against baselines, on one deterministic load in one run: `python -m bench`."""
