"""Protobuf and JSON: the two forms of an OTLP request, and of its answer.

JSON is protobuf's JSON mapping with OTLP's exception: trace and span ids are hexadecimal. It
costs about fifty times protobuf's time to read, so its bodies are held shorter.
"""

from __future__ import annotations

import base64
import json
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from tracecore_sidecar.intake.body import MAX_BODY_BYTES
from tracecore_sidecar.intake.refusal import RefusedError

if TYPE_CHECKING:
    from starlette.requests import Request

MAX_JSON_BYTES = 4 << 20
"""About 10,000 data points, and a second of decoding."""
MAX_DEPTH = 64
"""Nesting of a JSON body; a span's event attribute has about 12 levels."""
MAX_REASON = 500
"""Characters of a message that goes back to the sender."""
_IDS = {"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"}

MessageT = TypeVar("MessageT", bound=Message)


class Form(str, Enum):
    """How a request is written, by content type; its answer is written the same way."""

    PROTOBUF = "application/x-protobuf"
    JSON = "application/json"

    @property
    def max_bytes(self) -> int:
        """Longest body that is read."""
        return MAX_JSON_BYTES if self is Form.JSON else MAX_BODY_BYTES

    @property
    def weight(self) -> int:
        """What a byte costs to decode, against one of protobuf; rounded down for small senders."""
        return 8 if self is Form.JSON else 1

    @property
    def inline_bytes(self) -> int:
        """Longer bodies are decoded in a worker thread, so that they do not hold up the others."""
        return 8 << 10 if self is Form.JSON else 256 << 10


def form_of(request: Request) -> Form:
    """Tell the form from the content type; raise :class:`RefusedError` for any other."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        return Form(media_type)
    except ValueError:
        raise RefusedError(
            415, f"content type {media_type[:100]!r}; send {Form.PROTOBUF.value}, or JSON"
        ) from None


def decode(raw: bytes, form: Form, message_type: type[MessageT]) -> MessageT:
    """Read a message; raise :class:`RefusedError` where the bytes are none."""
    message = message_type()
    name = message_type.DESCRIPTOR.name
    try:
        if form is Form.PROTOBUF:
            message.ParseFromString(raw)
            return message
        document = json.loads(raw)
        if not isinstance(document, dict):
            raise RefusedError(400, f"not an {name}: JSON {type(document).__name__}, not an object")
        _ids_to_base64(document, 0)
        json_format.ParseDict(document, message, ignore_unknown_fields=True)
    except (DecodeError, json_format.ParseError, ValueError, RecursionError) as error:
        raise RefusedError(400, f"not an {name}: {str(error)[:MAX_REASON]}") from None
    return message


def encode(message: Message, form: Form) -> bytes:
    """Write an answer."""
    if form is Form.PROTOBUF:
        return message.SerializeToString()
    return json_format.MessageToJson(message, indent=None).encode()


def encode_status(reason: str, form: Form) -> bytes:
    """Write a ``google.rpc.Status`` that holds a message only, as OTLP asks for in errors."""
    text = reason[:MAX_REASON].encode("utf-8", "replace")
    if form is Form.JSON:
        return json.dumps({"message": text.decode()}).encode()
    # Field 2 of a message of which nothing else is needed: by hand, not by one more dependency.
    size = len(text)
    length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    return b"\x12" + length + text


def _ids_to_base64(value: Any, depth: int) -> None:
    """Turn hexadecimal ids into what protobuf's JSON mapping wants for bytes, in place."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, list):
        for item in value:
            _ids_to_base64(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in _IDS and isinstance(item, str):
                value[key] = base64.b64encode(bytes.fromhex(item)).decode()
            else:
                _ids_to_base64(item, depth + 1)
