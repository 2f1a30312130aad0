"""The database's shape, and reading the record.

`tables`         every table; what queries are written against
`migrate`        brings a database up to it; `migrations` has the steps
`filters`        the grammar of `q` (pure)
`shapes`         what reading gives
`interceptions`  single requests; `sessions`  what belongs together, as threads
`facets`         models and clients there are; `journals`  how far each is stored
`replicas`       what gateways told of themselves; `traffic`  what the last minute brought
`storage`        how much room it all takes; `housekeeping`  how old records were removed last
`rpc_role`       the role under which gateways are answered
"""
