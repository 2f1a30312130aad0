"""Starts the processes of one machine, keeps them running and ends them; with the embedded PostgreSQL.

`plan`              what to run: `ServerPlan`, built by the command line
`supervisor`        `run(plan)`: the life of the command
`child_process`     a child as the supervisor sees it
`child`             the other side: how every child process starts
`channel`           the control socket between the two
`database_service`  keeps `postgres` running
`postgres`          one embedded server; `pgbin` finds its programs and the user that runs them
`data_directory`    made, closed to others, locked
`listeners`         the listening sockets, which outlive the processes that serve them
`backoff`           how long to wait before a new start
`lifetime`          ending with the parent
`logs`              structlog and `logging`, the same for every process
`terminal`          what the person at the terminal reads
`errors`            what ends a start
"""
