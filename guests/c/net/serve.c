// A TCP server: one loop around poll, many connections at once.

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "net.h"

#define MOST 1024
#define ROOM 16384

struct connection {
	size_t have;        // bytes that came
	size_t start, end;  // of those that go back
	int ended;          // the client has sent all
	char bytes[ROOM];
};

static struct pollfd polled[MOST];
static struct connection *connections_[MOST];
static size_t count;

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
	connections_[count] = new;
	polled[count++] = (struct pollfd){ .fd = fd, .events = POLLIN };
}

// Does what is possible; 0 when the connection is done with.
static int advance(struct connection *c, struct pollfd *p, answers *answer)
{
	if (p->events == POLLIN) {
		ssize_t got = recv(p->fd, c->bytes + c->have, ROOM - c->have, 0);
		if (got < 0)
			return errno == EAGAIN;
		c->have += got;
		c->ended = got == 0;
		c->start = 0;
		c->end = answer(c->bytes, c->have, ROOM, &c->ended);
	}
	while (c->start < c->end) {
		ssize_t sent = send(p->fd, c->bytes + c->start, c->end - c->start, 0);
		if (sent < 0) {
			p->events = POLLOUT;
			return errno == EAGAIN;
		}
		c->start += sent;
	}
	if (c->end)
		c->have = 0;
	p->events = POLLIN;
	if (c->ended)
		shutdown(p->fd, SHUT_WR);
	return !c->ended && c->have < ROOM;
}

_Noreturn void serve(int listener, answers *answer)
{
	polled[count++] = (struct pollfd){ .fd = listener, .events = POLLIN };
	for (;;) {
		if (poll(polled, count, -1) < 0)
			fail("poll");
		// From the back, so that what is removed moves nothing still to come.
		for (size_t at = count; at-- > 1;) {
			if (!polled[at].revents || advance(connections_[at], &polled[at], answer))
				continue;
			close(polled[at].fd);
			free(connections_[at]);
			count--;
			polled[at] = polled[count];
			connections_[at] = connections_[count];
		}
		if (polled[0].revents)
			accept_one(listener);
	}
}

size_t echo(char *bytes, size_t count, size_t room, int *ended)
{
	(void)bytes, (void)room, (void)ended;
	return count;
}
