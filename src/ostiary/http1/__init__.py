"""The HTTP/1.1 engine: both sides of a relay, on asyncio protocols.

`head`      what a request or response head must look like, and what is read from it; pure
`chunks`    decoder of chunked request bodies; pure
`fields`    the one table of what is stripped from heads, and the cutting of outgoing ones; pure
`server`    one client connection: heads, bodies, pipelining, time-outs, back-pressure
`connections` those of a worker: how many, and who makes room
`upstream`  one upstream connection: sends a request, tracks the answer's framing, relays its bytes as they came
`pool`      keep-alive connections per origin; connecting, TLS, proxies, the check of resolved addresses
`tls`       TLS towards an upstream, between two buffers
`origin`    where an upstream is, and what must not be connected to; pure
`interfaces` what both kinds of connection expect of those around them
`errors`    what can go wrong on either side

A message head is validated by llhttp, strictly, and then refused on top of that for all that two parsers could read
differently. Bodies with a `Content-Length` are counted, chunked answers are tracked by llhttp; nothing is re-framed unless
an edit asks for it.
"""
