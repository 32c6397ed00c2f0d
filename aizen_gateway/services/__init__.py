"""The use cases: one layer for REST and sockets alike. Handlers parse and serialise, everything else is here."""
