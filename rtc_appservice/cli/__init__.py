"""The command line: reads options and calls what does the work; composes the stages, as `service` does."""
