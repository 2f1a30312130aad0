"""The benchmark of design §15: `python -m bench [--quick] [--only NAME ...] [--json FILE]`.

works       what is asked: request bodies, and the shape of the answers
load        the load generator, a process of its own; shares no code with Ostiary
machine     cores, pinning, versions; CPU and memory of a process by the kernel's own accounting
children    starts, pins and ends processes, by pid
fake_upstream, nginx, ostiary, litellm      what is measured, each a `Target`
rounds      interleaved rounds, medians
parts       the parts of a run: calls, streams, latency, memory, workers, ingest, soak
table       floors and aims of design §15, the verdict
report      prints, and writes docs/performance.md
"""
