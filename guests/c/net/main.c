// Chooses what the program does by its first argument.

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "net.h"

static const char usage[] =
	"Servers say `listening on port PORT` and serve all at once, for ever.\n"
	"\n"
	"net tcp-echo PORT                  send back what arrives, and end when the client does\n"
	"net udp-echo PORT                  send each datagram back\n"
	"net http PORT                      HTTP/1.1: greet\n"
	"\n"
	"net tcp-get HOST PORT TEXT         send TEXT, half-close, print what comes until the end\n"
	"net connections COUNT HOST PORT    open that many, hold all, echo on each, close them\n"
	"net udp-get HOST PORT TEXT         send a datagram, print the one that comes within 5 s\n"
	"net fetch URL                      HTTP/1.1: print the status and the body\n"
	"net lookup NAME                    print the addresses of a name, one a line\n";

_Noreturn void fail(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	exit(1);
}

int main(int count, char **args)
{
	setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
	const char *call = count > 1 ? args[1] : "";
	if (!strcmp(call, "tcp-echo") && count == 3)
		serve(here(args[2], SOCK_STREAM), echo);
	else if (!strcmp(call, "http") && count == 3)
		serve(here(args[2], SOCK_STREAM), http);
	else if (!strcmp(call, "udp-echo") && count == 3)
		udp_echo(args[2]);
	else if (!strcmp(call, "tcp-get") && count == 5)
		tcp_get(args[2], args[3], args[4]);
	else if (!strcmp(call, "connections") && count == 5)
		connections(atoi(args[2]), args[3], args[4]);
	else if (!strcmp(call, "udp-get") && count == 5)
		udp_get(args[2], args[3], args[4]);
	else if (!strcmp(call, "fetch") && count == 3)
		fetch(args[2]);
	else if (!strcmp(call, "lookup") && count == 3)
		lookup(args[2]);
	else {
		fputs(usage, stderr);
		return 2;
	}
	return 0;
}
