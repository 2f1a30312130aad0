"""The benchmark: `python -m bench [main | stages | growth | all]`; docs/performance.md has its method.

works       what is asked: request bodies, and the shape of the answers
load        the load generator, a process of its own; shares no code with Ostiary
machine     cores, pinning, versions, what else goes on; CPU and memory of a process by the kernel's own accounting
children    starts, pins and ends processes, by pid
build       which code of Ostiary is measured: a wheel with compiled modules, the source tree, or a directory
fake_upstream, nginx, ostiary, litellm, portkey     what is measured, each a `Target`
rounds      interleaved rounds, medians
parts       the parts of the main run: calls, streams, latency, memory, workers, ingest, gateways, builds, soak
table       floors, aims and the verdict
stages      where the time of a call goes; `inside` measures it without sockets, in the build's own interpreter
growth      how cost grows with sizes, lengths and numbers, and with fewer cores
report      prints, and writes the blocks of docs/performance.md
"""
