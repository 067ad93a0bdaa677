"""PostgreSQL with pgvector, for when one machine is not enough. Imported only when a store's address asks for it."""
