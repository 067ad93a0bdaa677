"""Haystack reports each run of a pipeline to its makers. Not where its user said nothing about that."""

import os

_SAID = "HAYSTACK_TELEMETRY_ENABLED"


def switch_off() -> None:
    """Report nothing, unless ``HAYSTACK_TELEMETRY_ENABLED`` was set. Also when Haystack was imported before."""
    if _SAID not in os.environ:
        os.environ[_SAID] = "False"
        from haystack.telemetry import _telemetry  # what the variable says is read once, at the import

        _telemetry.telemetry = None
