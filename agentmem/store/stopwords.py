"""English words that carry no topic. Dropped from queries, never from what is indexed."""

from __future__ import annotations

_LINES = (
    "a about above after again against all also am an and any are aren as at be because been before being "
    "below between both but by can could couldn d did didn do does doesn doing don down during each few "
    "for from further get got had hadn has hasn have haven having he her here hers herself him himself "
    "his how i if in into is isn it its itself just let ll m me might more most much must my myself "
    "no nor not now of off on once only or other our ours ourselves out over own please re s same shall "
    "she should shouldn so some such t tell than that the their theirs them themselves then there these "
    "they this those through to too under until up us ve very was wasn we were weren what when where "
    "which while who whom whose why will with won would wouldn you your yours yourself yourselves "
)

STOP_WORDS = frozenset(_LINES.split())
