"""The connection of a machine to its control plane: one process beside the workers.

`process`         the entry, and what the parts below tell each other
`client`          the control plane's RPCs, and what a failure of one means
`connection`      whether the control plane answers, and for how long what it said may be used
`backoff`         waiting between attempts
`cache`           what was known, on disk, for a start without the control plane
`snapshots`       which providers there are; its poll is the heartbeat
`watches`         what the control plane pushes: changes of providers, revocations
`authorizations`  who a token is: remembered answers, and questions that are asked once
`shipper`         all journals of the machine
`journal_shipper` one journal, from where the control plane holds it to its end
`journal_files`   one journal's directory, whatever the disk did to it
`workers`         the workers' sockets, readiness of the machine
`channel`         one worker's socket
`status`          what the machine tells of itself
`health`          how keys and breakers fare: what workers say of them, half-open trials
`health_records`  one key, one breaker
`health_metrics`  both as metrics
`metrics_sum`     the counters of all workers as those of one machine
`metrics_page`    `GET /metrics`
`interception_log` a line a record, for who collects them elsewhere

Authorisations, snapshots and states flow to the workers, records to the control plane. Nothing here is on the path of a
request whose token a worker knows. What must survive this process is on disk: the journals.
"""
