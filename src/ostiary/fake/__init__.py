"""A fake provider for the demo, tests, benchmarks and doctor."""
