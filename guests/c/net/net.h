// Servers and clients in C for WASI 0.2, on the sockets of its C library.

#pragma once

#include <stddef.h>
#include <sys/socket.h>

// An address, of either family.
struct place {
	struct sockaddr_storage address;
	socklen_t length;
};

// Says what went wrong, and ends the program with 1.
_Noreturn void fail(const char *what);

// The first address of a host (a name or an address) and its port.
struct place there(const char *host, const char *port, int type);
// Prints the addresses of a name, one a line.
void lookup(const char *name);
// A socket at that port on every address of the pod. Says where it is.
int here(const char *port, int type);

// A connection to a host.
int dial(const char *host, const char *port);
void send_all(int fd, const char *bytes, size_t count);
// Prints what comes until the other side's end; 1 if that did not end a line.
int print_rest(int fd);

// What a server makes of the bytes that it has of one connection, in place:
// how many go back. None: it wants more, or with `ended` set, it is done.
typedef size_t answers(char *bytes, size_t count, size_t room, int *ended);

// Serves the connections of a listener, all at once, for ever.
_Noreturn void serve(int listener, answers *answer);

// Sends back what came, until the client has sent all.
size_t echo(char *bytes, size_t count, size_t room, int *ended);
// Answers one request of HTTP/1.1.
size_t http(char *bytes, size_t count, size_t room, int *ended);

void tcp_get(const char *host, const char *port, const char *text);
void connections(int count, const char *host, const char *port);
void fetch(const char *url);
_Noreturn void udp_echo(const char *port);
void udp_get(const char *host, const char *port, const char *text);
