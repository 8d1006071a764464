"""The agent's log: one line an event on stderr, JSON when that is not a terminal, and fields
when journald reads it."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import Processor

from installer import journal


def configure(level: str) -> None:
    """Send everything of this level and above to stderr or the journal; call once, at the
    start."""
    to_journal = journal.is_ours()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            # The journal has its own time.
            *([] if to_journal else [structlog.processors.TimeStamper(fmt="iso", utc=True)]),
            structlog.processors.format_exc_info,
            _renderer(to_journal),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=_journal_logger if to_journal else structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _renderer(to_journal: bool) -> Processor:
    if to_journal:
        return journal.Renderer()
    if sys.stderr.isatty():
        return structlog.dev.ConsoleRenderer()
    return structlog.processors.JSONRenderer()


def _journal_logger(*_: object) -> journal.JournalLogger:
    return journal.JournalLogger()
