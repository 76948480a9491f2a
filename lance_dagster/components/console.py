"""The console log of runs: one short line per message, with the asset and the iteration it belongs to."""

from __future__ import annotations

import logging
import sys

import dagster as dg


class _ShortLines(logging.Formatter):
    """``14:02:11  mini/sft_checkpoint[001]  SFT: step 10/120, loss 0.31``"""

    def format(self, record: logging.LogRecord) -> str:
        meta = getattr(record, "dagster_meta", None) or {}
        step = str(meta.get("step_key") or meta.get("job_name") or "")
        tags = meta.get("job_tags") or {}
        partition = tags.get("dagster/partition")
        place = step.replace("__", "/") + (f"[{partition}]" if partition else "")
        text = str(meta.get("orig_message") or record.getMessage())
        clock = self.formatTime(record, "%H:%M:%S")
        return f"{clock}  {place}  {text}" if record.levelno < logging.ERROR else f"{clock}  {place}  ERROR: {text}"


@dg.logger(
    config_schema={
        "log_level": dg.Field(str, default_value="INFO", description="DEBUG shows Dagster's own events too")
    },
    description="Short lines on standard error.",
)
def console_logger(context: dg.InitLoggerContext) -> logging.Logger:
    """The ``console`` logger of the code location."""
    logger = logging.getLogger("lance_dagster.console")
    logger.setLevel(context.logger_config["log_level"])
    logger.propagate = False
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_ShortLines())
        logger.addHandler(handler)
    return logger
