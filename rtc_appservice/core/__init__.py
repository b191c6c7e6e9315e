"""Stages 2, 4 and 5: parse, project, detect. Pure: no clock, no randomness, no logging, no `await`."""
