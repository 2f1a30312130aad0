"""The control plane: the only part with database access (design §2).

`process`     start, serve, drain
`app`         REST and RPC as one ASGI application; `state` is what its parts share
`api`         one router a resource; who is asking, errors, the edge around all of it
`services`    the RPC side, behind its gate
`gateway_keys` by which gateways elsewhere are known
`ingest`      journal frames to rows, exactly once
`store`       tables, migrations, and reading the record
`partitions`  weeks of recorded data, made ahead and dropped behind; `retention` says what goes when
`traffic`     what the last minute brought, summed up once for all who ask
`events`      what changed in the database, told to all who watch
`metrics`     what is counted here and measured there, for the metrics page; `measures` asks the database
`diagnosis`   what `ostiary doctor` asks; `certificates` of providers
`database`    the engine, and what to say when there is none; `locks` are the advisory locks
`providers`   providers as rows; `seed` brings those of the environment in; `provider_connections` reach them
`identity`    people and their tokens
`vault`       encryption at rest
`private_files` files that hold a secret: closed to others, whole or absent
`audit`       who changed what
"""
