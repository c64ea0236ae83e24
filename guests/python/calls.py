"""Calls HTTP servers by wasi:http/outgoing-handler 0.2."""

from urllib.parse import urlsplit

from componentize_py_types import Err, Ok
from wit_world.imports import outgoing_handler
from wit_world.imports.wasi_http_types import Fields, OutgoingRequest, Scheme_Http, Scheme_Https


def get(url: str) -> tuple[int, bytes]:
    """The status and the body of what a URL names. Raises Err as the host does."""
    parts = urlsplit(url)
    request = OutgoingRequest(Fields())
    request.set_scheme(Scheme_Https() if parts.scheme == "https" else Scheme_Http())
    request.set_authority(parts.netloc)
    request.set_path_with_query(parts._replace(scheme="", netloc="").geturl() or "/")
    future = outgoing_handler.handle(request, None)
    with future.subscribe() as answered:
        answered.block()
    match future.get():
        case Ok(Ok(response)):
            with response, response.consume() as body, body.stream() as stream:
                return response.status(), b"".join(pieces(stream))
        case Ok(Err(code)):
            raise Err(code)
        case other:
            raise RuntimeError(f"the answer was taken before: {other}")


def pieces(stream):
    """What comes on a stream, until its end."""
    try:
        while True:
            yield stream.blocking_read(64 << 10)
    except Err as end:
        # The other case is a connection that broke.
        if type(end.value).__name__ != "StreamError_Closed":
            raise
