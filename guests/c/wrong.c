// Makes the socket calls of WASI preview 1 on descriptors that are no sockets
// for them, and prints what each call says: `CALL WHAT: ERROR`.
//
// LISTEN_FDS_FIRST  the descriptor of a listener, which is tried too if it is set

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wasi/api.h>

static const char *name(__wasi_errno_t error)
{
	switch (error) {
	case __WASI_ERRNO_SUCCESS: return "success";
	case __WASI_ERRNO_AGAIN: return "again";
	case __WASI_ERRNO_BADF: return "badf";
	case __WASI_ERRNO_INVAL: return "inval";
	case __WASI_ERRNO_ISDIR: return "isdir";
	case __WASI_ERRNO_NOTCONN: return "notconn";
	case __WASI_ERRNO_NOTSOCK: return "notsock";
	case __WASI_ERRNO_NOTSUP: return "notsup";
	case __WASI_ERRNO_NOTCAPABLE: return "notcapable";
	case __WASI_ERRNO_PIPE: return "pipe";
	default: return strerror(error);
	}
}

static void try(const char *what, __wasi_fd_t fd)
{
	uint8_t bytes[4] = "abc";
	__wasi_iovec_t into = { bytes, sizeof bytes };
	__wasi_ciovec_t from = { bytes, sizeof bytes };
	__wasi_size_t size;
	__wasi_roflags_t flags;
	__wasi_fd_t accepted;
	printf("accept %s: %s\n", what, name(__wasi_sock_accept(fd, __WASI_FDFLAGS_NONBLOCK, &accepted)));
	printf("recv %s: %s\n", what, name(__wasi_sock_recv(fd, &into, 1, 0, &size, &flags)));
	printf("send %s: %s\n", what, name(__wasi_sock_send(fd, &from, 1, 0, &size)));
	printf("shutdown %s: %s\n", what, name(__wasi_sock_shutdown(fd, __WASI_SDFLAGS_WR)));
}

int main(void)
{
	const char *listener = getenv("LISTEN_FDS_FIRST");
	try("stdout", 1);
	try("nothing", 99);
	if (listener)
		try("listener", strtoul(listener, NULL, 10));
	return 0;
}
