"""Servers and clients in Python for WASI 0.2, chosen by the first argument.

TCP, UDP and names are the standard library's `socket`; HTTP is called by
wasi:http. Servers say `listening on port PORT` and serve for ever.

tcp-echo PORT                  send back what arrives, and end when the client does
udp-echo PORT                  send each datagram back

tcp-get HOST PORT TEXT         send TEXT, half-close, print what comes until the end
connections COUNT HOST PORT    open that many, hold all, echo on each, close them
udp-get HOST PORT TEXT         send a datagram, print the one that comes within 5 s
fetch URL                      print the status and the body
lookup NAME                    print the addresses of a name, one a line
"""

# What is imported only while it runs is not there: socket needs this for names.
import encodings.idna
import selectors
import socket
import sys

import calls
from componentize_py_types import Err
from wit_world import exports


class Run(exports.Run):
    def run(self) -> None:
        try:
            call(*sys.argv[1:])
        except OSError as error:
            print(error)
            raise Err(None)
        except Err as error:
            print(error.value)
            raise Err(None)
        finally:
            sys.stdout.flush()


def call(what: str, *args: str) -> None:
    match what, *args:
        case "tcp-echo", port:
            tcp_echo(int(port))
        case "udp-echo", port:
            udp_echo(int(port))
        case "tcp-get", host, port, text:
            print(tcp_get(host, int(port), text))
        case "connections", count, host, port:
            connections(int(count), host, int(port))
        case "udp-get", host, port, text:
            print(udp_get(host, int(port), text))
        case "fetch", url:
            status, body = calls.get(url)
            print(status)
            print(body.decode(), end="")
        case "lookup", name:
            for *_, address in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM):
                print(address[0])
        case _:
            print(__doc__)
            raise Err(None)


def tcp_echo(port: int) -> None:
    listener = socket.create_server(("0.0.0.0", port), backlog=1024)
    listener.setblocking(False)
    print("listening on port", port, flush=True)
    with selectors.DefaultSelector() as waiting:
        waiting.register(listener, selectors.EVENT_READ)
        while True:
            for ready, _ in waiting.select():
                if ready.fileobj is listener:
                    connection, _ = listener.accept()
                    connection.setblocking(False)
                    waiting.register(connection, selectors.EVENT_READ, bytearray())
                else:
                    advance(waiting, ready.fileobj, ready.data)


def advance(waiting: selectors.BaseSelector, connection: socket.socket, held: bytearray) -> None:
    """Reads, or writes what is held of what was read."""
    try:
        if not held:
            held += connection.recv(64 << 10)
            if not held:
                waiting.unregister(connection)
                connection.close()
                return
        del held[: connection.send(held)]
    except BlockingIOError:
        pass
    waiting.modify(connection, selectors.EVENT_WRITE if held else selectors.EVENT_READ, held)


def tcp_get(host: str, port: int, text: str) -> str:
    with socket.create_connection((host, port)) as connection:
        send(connection, text)
        return rest(connection)


def send(connection: socket.socket, text: str) -> None:
    connection.sendall(text.encode())
    connection.shutdown(socket.SHUT_WR)


def rest(connection: socket.socket) -> str:
    """What comes until the other side's end."""
    return b"".join(iter(lambda: connection.recv(64 << 10), b"")).decode()


def connections(count: int, host: str, port: int) -> None:
    opened = [socket.create_connection((host, port)) for _ in range(count)]
    print(count, "open")
    # All are written to before the first is read.
    for at, connection in enumerate(opened):
        send(connection, str(at))
    answers = [rest(connection) for connection in opened]
    for connection in opened:
        connection.close()
    if answers != [str(at) for at in range(count)]:
        print("not all are echoes:", answers)
        raise Err(None)
    print(count, "echoed")


def udp_echo(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.bind(("0.0.0.0", port))
        print("listening on port", port, flush=True)
        while True:
            datagram, source = own.recvfrom(1 << 16)
            own.sendto(datagram, source)


def udp_get(host: str, port: int, text: str) -> str:
    family, *_, to = socket.getaddrinfo(host, port)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as own:
        own.sendto(text.encode(), to)
        # Not before: it would wait for a socket that is nowhere yet.
        own.settimeout(5)
        return own.recv(1 << 16).decode()
