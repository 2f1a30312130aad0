"""A fake provider: one HTTP server that speaks OpenAI's and Anthropic's formats, for the demo, tests, benchmarks and doctor.

    behaviour   what a request may ask for (faults, pace, contents), by header or by the model's name
    asked       request body → what the answer depends on
    answer      that → text, thinking, tool calls, usage
    anthropic, chat, responses, completions          those → one provider's JSON or events
    catalog, media, files, copilot, errors           what providers answer beside; metered: which route is which of them
    forms       uploads, counted and hashed without being held
    event_stream                                     events → bytes, with the oddities of real streams
    delivery    bytes → a script: framing, coding, pace, tears, cuts
    aws, aws_bedrock, aws_identity, aws_signature    AWS Bedrock behind checked signatures, STS, instance metadata
    keys, replay, ledger                             what a test scripts, and what it asks afterwards
    provider    all of the above: a request in, the script of its answer out, without a socket
    connection  plays scripts on an HTTP/1.1 connection; admin: the paths under /fake/
    server      `serve`, the way in; process: as a child process or a command

Everything up to `provider` is pure. Nothing here uses Ostiary's HTTP engine or readers: this is the other end in their
tests. The admin paths are open to whoever reaches the listener and a request can make the server misbehave: it is for
loopback, never for a network.
"""

from .server import FakeServer, serve

__all__ = ["FakeServer", "serve"]
