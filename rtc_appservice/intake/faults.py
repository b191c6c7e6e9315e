"""Stage 1: what a log may say of an error."""

import traceback


def describe(error: object) -> dict[str, str]:
    """Give log fields for an error: its class, its SQLSTATE and the line it came from, never its text or arguments."""
    if not isinstance(error, BaseException):
        return {}
    cause = error.__cause__ or error
    fields = {"error": type(cause).__name__}
    sqlstate = getattr(cause, "sqlstate", None)
    if isinstance(sqlstate, str):
        fields["sqlstate"] = sqlstate
    frames = traceback.extract_tb(cause.__traceback__)
    if frames:
        fields["at"] = f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}"
    return fields
