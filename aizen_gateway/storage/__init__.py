"""PostgreSQL, the truth, and Redis, the index of it and the wire between instances."""
