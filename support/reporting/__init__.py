"""Reporting: how good is a model, how sure is that, and how is it shown?

The story imports from here what is light; `curves`, `finished`, `tables`, `plots`, `pdf` and `page`
need pandas, matplotlib, reportlab and Jinja2, and are imported where a report is made.
"""

from support.reporting.metrics import (
    describe,
    describe_epoch,
    dev_sets_of,
    measure,
    one_class_note,
    read_metrics,
    show_run,
    summary,
)

__all__ = [
    "describe", "describe_epoch", "dev_sets_of", "measure", "one_class_note",
    "read_metrics", "show_run", "summary",
]  # fmt: skip
