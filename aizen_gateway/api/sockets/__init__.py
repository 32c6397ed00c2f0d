"""WebSockets: the handshake, frames in and out, and the messages of each audience (contract section 6)."""
