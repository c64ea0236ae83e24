// TCP clients.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "net.h"

int dial(const char *host, const char *port)
{
	struct place to = there(host, port, SOCK_STREAM);
	int fd = socket(to.address.ss_family, SOCK_STREAM, 0);
	if (fd < 0)
		fail("socket");
	if (connect(fd, (struct sockaddr *)&to.address, to.length))
		fail("connect");
	return fd;
}

void send_all(int fd, const char *bytes, size_t count)
{
	while (count) {
		ssize_t sent = send(fd, bytes, count, 0);
		if (sent < 0)
			fail("send");
		bytes += sent;
		count -= sent;
	}
}

int print_rest(int fd)
{
	char bytes[16384], last = '\n';
	ssize_t got;
	while ((got = recv(fd, bytes, sizeof bytes, 0)) > 0) {
		fwrite(bytes, 1, got, stdout);
		last = bytes[got - 1];
	}
	if (got < 0)
		fail("recv");
	return last != '\n';
}

void tcp_get(const char *host, const char *port, const char *text)
{
	int fd = dial(host, port);
	send_all(fd, text, strlen(text));
	if (shutdown(fd, SHUT_WR))
		fail("shutdown");
	if (print_rest(fd))
		putchar('\n');
	close(fd);
}

void connections(int count, const char *host, const char *port)
{
	int *open = calloc(count, sizeof *open);
	if (!open)
		fail("calloc");
	for (int at = 0; at < count; at++)
		open[at] = dial(host, port);
	printf("%d open\n", count);
	char text[16], back[16];
	// All are written to before the first is read.
	for (int at = 0; at < count; at++) {
		send_all(open[at], text, sprintf(text, "%d", at));
		if (shutdown(open[at], SHUT_WR))
			fail("shutdown");
	}
	for (int at = 0; at < count; at++) {
		size_t have = 0;
		ssize_t got;
		while ((got = recv(open[at], back + have, sizeof back - have, 0)) > 0)
			have += got;
		if (got < 0)
			fail("recv");
		size_t length = sprintf(text, "%d", at);
		if (have != length || memcmp(text, back, length)) {
			printf("connection %d: not an echo\n", at);
			exit(1);
		}
		close(open[at]);
	}
	printf("%d echoed\n", count);
	free(open);
}
