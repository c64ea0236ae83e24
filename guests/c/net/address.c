// Names and addresses.

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "net.h"

static struct addrinfo *find(const char *host, const char *port, int type)
{
	struct addrinfo wanted = { .ai_socktype = type }, *found;
	int error = getaddrinfo(host, port, &wanted, &found);
	if (error) {
		printf("%s: %s\n", host, gai_strerror(error));
		exit(1);
	}
	return found;
}

struct place there(const char *host, const char *port, int type)
{
	struct addrinfo *found = find(host, port, type);
	struct place place = { .length = found->ai_addrlen };
	memcpy(&place.address, found->ai_addr, found->ai_addrlen);
	freeaddrinfo(found);
	return place;
}

void lookup(const char *name)
{
	struct addrinfo *found = find(name, NULL, SOCK_STREAM);
	for (struct addrinfo *at = found; at; at = at->ai_next) {
		char text[INET6_ADDRSTRLEN];
		const void *bytes = at->ai_family == AF_INET
			? (const void *)&((struct sockaddr_in *)at->ai_addr)->sin_addr
			: (const void *)&((struct sockaddr_in6 *)at->ai_addr)->sin6_addr;
		puts(inet_ntop(at->ai_family, bytes, text, sizeof text));
	}
	freeaddrinfo(found);
}

int here(const char *port, int type)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
	int fd = socket(AF_INET, type, 0);
	if (fd < 0)
		fail("socket");
	if (bind(fd, (struct sockaddr *)&at, sizeof at))
		fail("bind");
	if (type == SOCK_STREAM && listen(fd, SOMAXCONN))
		fail("listen");
	printf("listening on port %s\n", port);
	return fd;
}
