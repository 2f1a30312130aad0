"""The HTTP/1.1 engine."""
