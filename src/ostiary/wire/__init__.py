"""Sans-I/O readers of what providers speak: bytes in, facts out."""
