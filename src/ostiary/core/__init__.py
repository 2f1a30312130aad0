"""The vocabulary of all parts: no I/O, and nothing else of ours is imported here.

`ids`        UUIDv7 as text
`secret`     `Secret`, which prints as ***, and `mask`
`records`    what a journal frame carries: `InterceptionStart`, `InterceptionEnd`, `WorkerGone`
`providers`  provider types, settings, `ProviderSpec`
`provider_rules`, `provider_env`  what a provider may be configured as; the providers the environment describes
`identity`   who a token is, or why it is refused
`messages`   what workers, link and supervisor say to each other
`supervision` a child's side of its control socket, as its parts see it
`health`     how keys and upstreams fare, as workers and link tell each other
`trials`     which requests may try a suspect key, or a breaker that was open
`settings`   the settings each process gets, already checked
`journal`    the frame format of a journal segment
`metrics`    counters behind pre-resolved handles; `families`: how they are sent on
`interception_log`  the fields of `interception log` lines
`agents`     which client sent a request, and in which session
`build`      compiled or not
"""
