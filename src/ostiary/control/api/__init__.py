"""The REST API: one router a resource.

`edge`    around every request: its origin, its id, the size of its body
`deps`    what routes ask for: the caller, a connection, a role
`errors`  the one shape of every error
`reading` what the routes that show the record share: who sees what, pages, `q`
`docs`    the page at /docs
"""
