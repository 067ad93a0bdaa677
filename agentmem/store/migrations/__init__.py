"""Schema revisions. Additive by rule.

Rebuilding a table with foreign keys on would empty, silently, the tables that refer to it.
"""
