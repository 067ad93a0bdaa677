"""Measurements of what the recipes remember, and what they cost: the tasks behind ``agentmem eval``."""
