"""An HTTP server (wasi:http/proxy 0.2) in Python.

GET  /hello            greets
GET  /fetch?url=URL    the answer of another server; 502 if it has none
POST /echo             sends the request's body back
"""

import calls
from componentize_py_types import Err, Ok
from wit_world import exports
from wit_world.imports.wasi_http_types import (
    Fields,
    IncomingRequest,
    OutgoingBody,
    OutgoingResponse,
    ResponseOutparam,
)


class IncomingHandler(exports.IncomingHandler):
    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        status, text = answer(request)
        response = OutgoingResponse(Fields.from_list([("content-type", b"text/plain")]))
        response.set_status_code(status)
        body = response.body()
        ResponseOutparam.set(response_out, Ok(response))
        with body.write() as stream:
            # No more than 4 KiB may be written at once.
            for start in range(0, len(text), 4096):
                stream.blocking_write_and_flush(text[start : start + 4096])
        OutgoingBody.finish(body, None)


def answer(request: IncomingRequest) -> tuple[int, bytes]:
    path, _, query = (request.path_with_query() or "/").partition("?")
    match path:
        case "/hello":
            return 200, b"Hello from Python!\n"
        case "/fetch":
            try:
                return calls.get(query.removeprefix("url="))
            except Err as error:
                return 502, f"{error.value}\n".encode()
        case "/echo":
            with request.consume() as body, body.stream() as stream:
                return 200, b"".join(calls.pieces(stream))
        case _:
            return 404, b"no such path\n"
