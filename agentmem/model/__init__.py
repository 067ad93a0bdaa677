"""The transformer: keys and values, rotary positions, attention over memory, and the local model that joins them."""
