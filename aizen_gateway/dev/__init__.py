"""What makes the gateway run on one machine with nothing else installed: for development, demonstrations and tests."""
