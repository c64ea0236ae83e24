// As much of HTTP/1.1 as a greeting needs.

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "net.h"

size_t http(char *bytes, size_t count, size_t room, int *ended)
{
	if (count == room)
		return 0;
	bytes[count] = 0;
	if (!strstr(bytes, "\r\n\r\n"))
		return 0;
	*ended = 1; // of what is asked further, nothing is read
	int known = !strncmp(bytes, "GET /hello ", 11);
	const char *body = known ? "Hello from C!\n" : "no such path\n";
	return snprintf(bytes, room,
		"HTTP/1.1 %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s",
		known ? "200 OK" : "404 Not Found", strlen(body), body);
}

// Reads the answer's head, and prints the status and what of the body came along.
static void head(int fd)
{
	char bytes[16384], *end = NULL;
	size_t have = 0;
	while (!end) {
		ssize_t got = recv(fd, bytes + have, sizeof bytes - 1 - have, 0);
		if (got < 0)
			fail("recv");
		if (got == 0) {
			puts("the answer has no end of its head");
			exit(1);
		}
		bytes[have += got] = 0;
		end = strstr(bytes, "\r\n\r\n");
	}
	char *status = strchr(bytes, ' ');
	printf("%.3s\n", status ? status + 1 : "");
	end += 4;
	fwrite(end, 1, bytes + have - end, stdout);
}

void fetch(const char *url)
{
	char host[256], port[6] = "80", request[2048];
	int path = 0;
	// An address of IPv6 would stand in brackets: this takes names and IPv4.
	if (sscanf(url, "http://%255[^:/]%n", host, &path) != 1) {
		puts("not a URL of http");
		exit(1);
	}
	const char *rest = url + path;
	int more = 0;
	if (sscanf(rest, ":%5[0-9]%n", port, &more) == 1)
		rest += more;
	int length = snprintf(request, sizeof request,
		"GET %s HTTP/1.0\r\nHost: %s:%s\r\n\r\n", *rest ? rest : "/", host, port);
	if (length >= (int)sizeof request) {
		errno = EMSGSIZE;
		fail(url);
	}
	int fd = dial(host, port);
	send_all(fd, request, length);
	head(fd);
	print_rest(fd);
	close(fd);
}
