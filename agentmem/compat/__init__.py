"""The shapes of other memories, over this one: switching is one import."""
