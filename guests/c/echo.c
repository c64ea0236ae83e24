// A TCP server for WASI preview 1 in C: it sends back what arrives on the
// connections of the listeners it was started with, many at once.
//
// LISTEN_FDS_FIRST  the descriptor of the first listener (3 if it is not set)
// LISTEN_FDS        how many there are (1 if it is not set)

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST 1024
#define PIECE 16384

// What has come of a connection and not gone back to it yet.
struct connection {
	size_t start, end;
	int ended; // the client has sent all
	char bytes[PIECE];
};

static struct pollfd polled[MOST];
static struct connection *connections[MOST];
static size_t count;

static long number(const char *name, long otherwise)
{
	const char *text = getenv(name);
	return text ? strtol(text, NULL, 10) : otherwise;
}

static void accept_one(int listener)
{
	int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
	if (fd < 0) {
		if (errno != EAGAIN)
			printf("accept: %s\n", strerror(errno));
		return;
	}
	struct connection *new = count < MOST ? calloc(1, sizeof *new) : NULL;
	if (!new) {
		close(fd);
		return;
	}
	connections[count] = new;
	polled[count++] = (struct pollfd){ .fd = fd, .events = POLLIN };
}

// Does what is possible; false when the connection is done with.
static int advance(size_t at)
{
	struct connection *c = connections[at];
	int fd = polled[at].fd;
	if (polled[at].events == POLLIN) {
		ssize_t got = recv(fd, c->bytes, sizeof c->bytes, 0);
		if (got < 0)
			return errno == EAGAIN;
		c->start = 0;
		c->end = got;
		c->ended = got == 0;
	}
	while (c->start < c->end) {
		ssize_t sent = send(fd, c->bytes + c->start, c->end - c->start, 0);
		if (sent < 0) {
			polled[at].events = POLLOUT;
			return errno == EAGAIN;
		}
		c->start += sent;
	}
	polled[at].events = POLLIN;
	if (c->ended)
		shutdown(fd, SHUT_WR);
	return !c->ended;
}

int main(void)
{
	long first = number("LISTEN_FDS_FIRST", 3);
	size_t listeners = number("LISTEN_FDS", 1);
	for (; count < listeners && count < MOST; count++)
		polled[count] = (struct pollfd){ .fd = first + count, .events = POLLIN };
	setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
	printf("serving %zu listeners from descriptor %ld on\n", count, first);
	for (;;) {
		if (poll(polled, count, -1) < 0) {
			printf("poll: %s\n", strerror(errno));
			return 1;
		}
		// From the back, so that what is removed moves nothing still to come.
		for (size_t at = count; at-- > 0;) {
			if (!polled[at].revents)
				continue;
			if (at < listeners) {
				accept_one(polled[at].fd);
			} else if (!advance(at)) {
				close(polled[at].fd);
				free(connections[at]);
				count--;
				polled[at] = polled[count];
				connections[at] = connections[count];
			}
		}
	}
}
