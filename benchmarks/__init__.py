"""Measurements of agentmem: what it remembers, and what a turn costs. See RESULTS.md."""
