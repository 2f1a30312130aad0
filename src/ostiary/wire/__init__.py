"""Sans-I/O readers of what providers speak: bytes in, facts out. The bytes themselves are never changed here but by splices.

`facts`                what is read: `RequestFacts`, `ResponseFacts`, `Usage`, `ToolCall`, `Thought`, `ProviderError`
`formats`              the way in: `read_request`, `read_body`, `observer_for`
`observer`             `Observer`: gets a copy of an answer's bytes, gives its facts at the end; its rules for the relay
`anthropic_messages`   one module per format, each with `read_request`, `read_body` and a `StreamReader`
`openai_chat`
`openai_responses`
`metered`              the same for routes of which only usage is read, from the answer as it passes
`errors`               kinds of provider errors and their messages
`content_coding`       gzip, deflate, br, zstd: bounded decoders, and what we ask upstreams for
`json_edit`            members of a JSON document found and changed in its bytes
`include_usage`        the one edit of chat requests, and the filter that hides what it causes
`bedrock`              Messages over AWS Bedrock's InvokeModel: request bodies rewritten, event streams as server-sent events
`event_stream`         AWS's binary event streams

Beneath them: `sse` (events cut at their boundaries), `events` (a block of events to structs in one pass), `lenient` (decoding
that takes what fits), `members` (a few members of a long object as it passes), `request` (what request readers share), `usage`
(token numbers of each API in one shape), `budget` (how much of one answer is kept).
"""
