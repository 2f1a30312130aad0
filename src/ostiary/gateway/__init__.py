"""The data plane: serves clients from an immutable snapshot, touches no database, records everything.

`worker`          one process's application: connections, upstream pool, snapshot, journal, time
`exchange`        one data-plane request, from its head to where it goes upstream
`reply`           from there on: its record, its client's answer, its end
`clearance`       whether it may go upstream, and with which credential
`upstream_call`   its upstream side: attempts, who gets the answer
`answers`         answers that do not go on just as they come
`upload`          forms that are streamed to the upstream; pure
`keep_alive`      pings while the upstream is silent; pure
`interception`    its record, begun before anything is sent and ended once
`front_door`      one request for the control plane, relayed as it comes
`decide`          every decision about a request; pure
`routes`          which path is what; pure
`providers/`      what is particular to each kind of provider
`snapshot`        the set of providers that a request is served from
`keypool`         a provider's keys and which of them a request gets; pure
`key_verdict`     what a provider's answer says of the key; pure
`breaker`         circuit breakers; pure
`health`          pools, breakers and trials of a worker, and what it tells the others of them
`authorizations`  who a token is: cache and pending questions
`limits`          requests at once and by the second, over all workers
`failures`        mistakes of ours: what is logged and answered
`refusals`        answers of our own, in the provider's error shape; pure
`refusal_log`     those that leave no record: counted and logged
`heads`           the heads that go out, to the upstream and to the client; pure
`recording`       the two records of an interception, from the facts of request and answer; pure
`journal`         where records are before the link has shipped them
`metrics`         counters of this path behind pre-resolved handles
`telemetry`       OpenTelemetry's thread; `telemetry_spans` are its data, `telemetry_export` the SDK's part
`dump`            what was really said, in files: `dump_files`, `dump_text`
`link_channel`    the worker's end of its socket to the link
`process`         start, orders of the supervisor, drain
`tls_listener`    the listening socket with TLS
"""
