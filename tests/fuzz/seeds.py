"""What mutations begin with: for each target a few inputs that get far, and the words that its language is made of.

Where a target reads a control byte, it stands first in each input (see `targets`).
"""

import gzip
import zlib
from typing import Final

import brotli
import zstandard

REQUEST: Final = b"POST /v1/x?a=b HTTP/1.1\r\nHost: gw:4000\r\nContent-Length: 5\r\nX-A: b\r\n\r\n"
CHUNKED: Final = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n"
INTERIM: Final = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
CHAT: Final = (
    b'{"model":"gpt-4.1","stream":true,"stream_options":{"include_usage":false},"messages":[{"role":"system","content":"s"},'
    b'{"role":"user","content":[{"type":"text","text":"hi \\u00e9"}]},{"role":"tool","tool_call_id":"c1","content":"x"}]}'
)
RESPONSES: Final = (
    b'{"model":"gpt-5","input":[{"role":"user","content":[{"type":"input_text","text":"hi"}]},'
    b'{"type":"function_call_output","call_id":"c1","output":[{"type":"output_text","text":"done"}]}],"metadata":{"a":"b"}}'
)
MESSAGES: Final = (
    b'{"model":"claude-haiku","max_tokens":4096,"metadata":{"user_id":"u"},"thinking":{"type":"enabled","budget_tokens":2048},'
    b'"output_config":{"effort":"low"},"messages":[{"role":"user","content":[{"type":"tool_result","tool_use_id":"t1",'
    b'"content":[{"type":"text","text":"r"}]},{"type":"text","text":"go"}]}]}'
)
CHAT_ANSWER: Final = (
    b'{"id":"c1","model":"m","choices":[{"index":0,"finish_reason":"tool_calls","message":{"content":"x","reasoning":"r",'
    b'"tool_calls":[{"id":"t1","type":"function","function":{"name":"f","arguments":"{}"}}]}}],"usage":{"prompt_tokens":9,'
    b'"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":3}}}'
)
RESPONSES_ANSWER: Final = (
    b'{"id":"r1","status":"completed","output":[{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},'
    b'{"type":"reasoning","summary":[{"type":"summary_text","text":"t"}]}],"usage":{"input_tokens":9,"output_tokens":2}}'
)
MESSAGES_ANSWER: Final = (
    b'{"id":"m1","type":"message","stop_reason":"tool_use","content":[{"type":"thinking","thinking":"t"},{"type":"tool_use",'
    b'"id":"t1","name":"f","input":{"a":1}}],"usage":{"input_tokens":9,"output_tokens":2,"cache_read_input_tokens":4}}'
)
ERROR: Final = b'{"type":"error","error":{"type":"overloaded_error","message":"busy","code":"429"}}'

CHAT_STREAM: Final = (
    b'data: {"id":"c1","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"t1","function":{"name":"f","arguments":'
    b'"{\\"a\\""}}]}}]}\n\ndata: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
)
MESSAGES_STREAM: Final = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m1","usage":{"input_tokens":9,'
    b'"output_tokens":1}}}\n\n'
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"t1",'
    b'"name":"f","input":{}}}\n\nevent: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":'
    b'{"type":"input_json_delta","partial_json":"{}"}}\n\nevent: content_block_stop\ndata: {"type":"content_block_stop",'
    b'"index":0}\n\nevent: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":'
    b'{"output_tokens":7}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
)
RESPONSES_STREAM: Final = (
    b'event: response.created\ndata: {"type":"response.created","response":{"id":"r1","model":"m"}}\n\n'
    b'event: response.output_item.done\ndata: {"type":"response.output_item.done","output_index":0,"item":{"type":'
    b'"function_call","call_id":"c","name":"f","arguments":"{}"}}\n\nevent: response.completed\ndata: {"type":'
    b'"response.completed","response":{"id":"r1","status":"completed","usage":{"input_tokens":9,"output_tokens":2}}}\n\n'
)
STREAMS: Final = (CHAT_STREAM, MESSAGES_STREAM, RESPONSES_STREAM, CHAT_STREAM.replace(b"\n", b"\r\n"))
FORM: Final = (
    b'multipart/form-data; boundary=b\n--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n'
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--b--\r\n'
)
ENVIRONMENT: Final = (
    b"OSTIARY_OPENAI_KEY=$K\nOSTIARY_PROVIDER_0_TYPE=anthropic\nOSTIARY_PROVIDER_0_NAME=x\nOSTIARY_PROVIDER_0_KEYS=$K,b\n"
    b"CODER_AI_GATEWAY_ANTHROPIC_KEY=$K\nOSTIARY_PROVIDER_1_TYPE=bedrock\nOSTIARY_PROVIDER_1_BEDROCK_REGION=eu-west-1"
)


def _each(*inputs: bytes) -> list[bytes]:
    """With control bytes that tear an input into single bytes, and in two."""
    return [how + data for how in (b"\x01", b"\x80") for data in inputs]


_HEADERS: Final = (
    b"\x0d:message-type\x07\x00\x05event\x01n\x04\x00\x00\x00\x07\x01t\x08\x00\x00\x00\x00\x00\x00\x00\x01"
)

SEEDS: Final[dict[str, list[bytes]]] = {
    "request_head": [REQUEST, CHUNKED, b"GET http://h/a HTTP/1.1\r\nHost: h\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"],
    "response_head": [ANSWER, b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.0 404 \r\nConnection: close, x\r\n\r\n"],
    "request_stream": _each(REQUEST + b"hello" + CHUNKED, CHUNKED + REQUEST + b"hello"),
    "response_stream": _each(
        ANSWER, INTERIM + CHUNKED.replace(b"POST / HTTP/1.1", b"HTTP/1.1 200 OK"), b"HTTP/1.0 200 \r\n\r\nx"
    ),
    "chunks": _each(b"5;a=b\r\nhello\r\n00\r\nX: y\r\n\r\nGET", b"a\r\n0123456789\r\n0;x\r\n\r\n"),
    "addresses": [
        b"https://user:pw@h:8443/v1?api-version=1#f",
        b"http://[::1]:80/",
        b"::ffff:169.254.1.1",
        b"10.0.0.0/8\n.x,*",
        b"a.x\n10.0.0.0/8,.x",
    ],
    "json_edits": _each(CHAT, b'\xef\xbb\xbf { "a" : 1 , "model":"m","a":[{}] }', b'{"\\u0061":"\\ud800","":{}}'),
    "members": _each(CHAT_ANSWER, b' {"id":"a\\"b" , "model" : null,"x":[{"id":1}],"usage":{"a":1},"id":2}'),
    "requests": _each(CHAT, RESPONSES, MESSAGES, b'{"model":"m"}'),
    "bodies": _each(CHAT_ANSWER, RESPONSES_ANSWER, MESSAGES_ANSWER, ERROR),
    "streams": _each(*STREAMS, b"data: " + ERROR + b"\n\n"),
    "events": _each(*STREAMS, b"\xef\xbb\xbfid: 1\r\rdata:x\rdata: y\n\r\n: c\n\n"),
    "forms": [FORM, FORM.replace(b"boundary=b", b'boundary="b"')],
    "codings": [
        b"\x10" + gzip.compress(CHAT, mtime=0),
        b"\x11" + zlib.compress(CHAT),
        b"\x12" + brotli.compress(CHAT),
        b"\x13" + zstandard.compress(CHAT),
        b"\x31" + zlib.compress(CHAT)[2:-4],
        b"\x10" + gzip.compress(bytes(100_000), mtime=0),
    ],
    "event_stream": [b"\x01" + bytes((len(_HEADERS), 2)) + _HEADERS + b"{}" + bytes((0, 1)) + b"x"],
    "bedrock_stream": _each(
        b'{"type":"message_start"}\n\n{"type":"ping"}\n\n!throttlingException\n{"message":"slow"}', b"?500\nx"
    ),
    "bedrock_request": [bytes((how,)) + b"context-1m-2025-08-07,x\n" + MESSAGES for how in range(3)],
    "journal_frames": [b"\x07one\ntwo\nthree", b"\x00" + bytes(40), b"\xff" + b"\x00\x00\x00\x01abcdx" * 3],
    "process_frames": [
        b"\x40\x83\xa4type\xaaWorkerHello\xa3pid\x07",
        b"\x20\x81\xa4type\xa8Snapshot",
        b"\x10\x82\xa4type\xa7Revoked\xa6hashes\x90",
    ],
    "provider_environment": [
        ENVIRONMENT,
        b"OSTIARY_PROVIDER_00_TYPE=x\nOSTIARY_BEDROCK_REGION=eu\nOSTIARY_ANTHROPIC_BASE_URL=http://x",
    ],
}


def _words(*texts: str) -> list[bytes]:
    """The words of texts, as bytes of the same numbers."""
    return [word.encode("latin-1") for text in texts for word in text.split(" ")]


_HTTP: Final = [
    *_words(
        "\r\n \r\n\r\n \n \r \t \x00 : ; , 0 chunked Content-Length Transfer-Encoding Host Connection close Upgrade h2c"
    ),
    *_words("HTTP/1.0 HTTP/1.1 http://h * +5 0x5 -1 0\r\n\r\n ffffffffffffffff \r\nContent-Length:5"),
    b" ",
    b"\r\nContent-Length: 5",
    b"\r\nTransfer-Encoding: chunked",
    b"\r\nExpect: 100-continue",
    b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
]
_JSON: Final = [
    *_words(
        '{ } [ ] " \\ , : null true false 1e999 -0 1.5 "" {} [] \\ud800 \\u0000 \xff \xed\xa0\x80 \xef\xbb\xbf NaN'
    ),
    *_words('"model" "stream" "usage" "id" "type" "text" "content" "role" "index" "error" "message" "choices" "delta"'),
    *_words('"tool_calls" "function" "arguments" "name" "input" "output" "response" "item" "thinking" "signature"'),
    *_words('"stream_options" "include_usage" "metadata" "budget_tokens" "cache_creation" "finish_reason" "[DONE]"'),
    b"[" * 1200,
    b'{"a":' * 1200,
    b"9" * 30,
]
_EVENTS: Final = [
    *_words("\n\n \r\n\r\n \r \n\r data: data:x event: [DONE] \xef\xbb\xbf"),
    b"data: ",
    b"event: ",
    b": c\n",
    b"id: 1\n",
]
_ENVIRONMENT: Final = [
    *_words(
        "OSTIARY_ CODER_AI_GATEWAY_ CODER_AIBRIDGE_ PROVIDER_0_ PROVIDER_1_ PROVIDER_01_ OPENAI_KEY ANTHROPIC_BASE_URL"
    ),
    *_words("TYPE= NAME= KEY= KEYS= BASE_URL= BEDROCK_REGION= BEDROCK_BASE_URL= BEDROCK_MODEL= DUMP_DIR="),
    *_words("openai bedrock copilot https://a.b/v1 $K , = \n \t _"),
]
_ADDRESSES: Final = _words(
    "http:// https:// @ : # ? / \\ [ ] ::1 [::ffff:1.2.3.4] %25 65536 0 . * , \n b\xc3\xbccher xn--a %"
)
_FORMS: Final = _words(
    'multipart/form-data; boundary= -- \r\n \r\n\r\n " name="model" filename= Content-Disposition: form-data;'
)
_FRAMES: Final = _words("\x80 \x90 \xa4type \xc0 \xc6\xff\xff\xff\xff \xdd\xff\xff\xff\xff")

TOKENS: Final[dict[str, list[bytes]]] = {
    **dict.fromkeys(("request_head", "response_head", "request_stream", "response_stream", "chunks"), _HTTP),
    **dict.fromkeys(("json_edits", "members", "requests", "bodies", "bedrock_request", "bedrock_stream"), _JSON),
    **dict.fromkeys(("streams", "events"), _JSON + _EVENTS),
    "addresses": _ADDRESSES,
    "forms": _FORMS,
    "codings": [b"\x1f\x8b\x08\x00", b"\x28\xb5\x2f\xfd", b"\x78\x9c", b"\x00" * 8, b"\x50\x2a\x4d\x18"],
    "event_stream": [
        *(bytes((kind,)) for kind in range(10)),
        b"\x00\x00",
        b"\xff\xff",
        b"\x7f" * 8,
        b"\x80" + bytes(7),
    ],
    "journal_frames": [b"\n", b"\x00\x00\x00\x01", b"\x00" * 9, b"\xff" * 8],
    "process_frames": [*_FRAMES, b"\x91" * 1200],
    "provider_environment": _ENVIRONMENT,
}
