// UDP, as a server and as a client.

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "net.h"

static char bytes[65536];

_Noreturn void udp_echo(const char *port)
{
	int fd = here(port, SOCK_DGRAM);
	for (;;) {
		struct place from = { .length = sizeof from.address };
		ssize_t got = recvfrom(fd, bytes, sizeof bytes, 0,
			(struct sockaddr *)&from.address, &from.length);
		if (got < 0)
			fail("recvfrom");
		if (sendto(fd, bytes, got, 0, (struct sockaddr *)&from.address, from.length) < 0)
			printf("sendto: %s\n", strerror(errno));
	}
}

void udp_get(const char *host, const char *port, const char *text)
{
	struct place to = there(host, port, SOCK_DGRAM);
	int fd = socket(to.address.ss_family, SOCK_DGRAM, 0);
	if (fd < 0)
		fail("socket");
	if (sendto(fd, text, strlen(text), 0, (struct sockaddr *)&to.address, to.length) < 0)
		fail("sendto");
	struct pollfd wait = { .fd = fd, .events = POLLIN };
	if (poll(&wait, 1, 5000) < 1) {
		errno = ETIMEDOUT;
		fail("poll");
	}
	ssize_t got = recv(fd, bytes, sizeof bytes, 0);
	if (got < 0)
		fail("recv");
	printf("%.*s\n", (int)got, bytes);
	close(fd);
}
