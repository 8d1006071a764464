/* A MOA server for benchmarks: answers each GET with {"ec":200,...} as long as its request,
 * PING with +PONG, anything else with -ERR. Prints "ready" and its ports once it listens.
 *
 * usage: echo CPU HOST:PORT...   (port 0: any that is free)
 */
#include "common.h"

#include <sys/epoll.h>

#define MAX_REQUEST (256 * 1024)
#define MAX_EVENTS 256
#define HEAD "{\"ec\":200,\"em\":\"\",\"result\":\""
#define TAIL "\"}\r\n"

struct connection {
	int fd;
	bool listens;
	size_t have;
	char *bytes;
};

struct request {
	size_t size;
	size_t last_size;
	bool is_get;
	bool is_ping;
};

static char reply[MAX_REQUEST + 64];
static size_t reply_size;
static size_t reply_for;

/* Reads "<kind><number>\r\n" and moves on; false when it is not complete. */
static bool read_number(const char **at, const char *end, long *number)
{
	const char *lf = memchr(*at, '\n', (size_t)(end - *at));

	if (!lf)
		return false;
	*number = strtol(*at + 1, NULL, 10);
	*at = lf + 1;
	return true;
}

static bool read_request(const char *bytes, size_t have, struct request *out)
{
	const char *at = bytes, *end = bytes + have;
	long count, size;

	if (!read_number(&at, end, &count))
		return false;
	*out = (struct request){ 0 };
	for (long i = 0; i < count; i++) {
		if (!read_number(&at, end, &size) || end - at < size + 2)
			return false;
		if (i == 0) {
			out->is_get = size == 3 && strncasecmp(at, "GET", 3) == 0;
			out->is_ping = size == 4 && strncasecmp(at, "PING", 4) == 0;
		}
		out->last_size = (size_t)size;
		at += size + 2;
	}
	out->size = (size_t)(at - bytes);
	return true;
}

/* Makes `reply` a bulk of `size` bytes, or of the fewest that the JSON takes. */
static void fill_reply(size_t size)
{
	size_t least = strlen(HEAD) + strlen(TAIL) - 2, body = size < least ? least : size;

	if (reply_for == size)
		return;
	reply_size = (size_t)sprintf(reply, "$%zu\r\n%s", body, HEAD);
	memset(reply + reply_size, 'x', body - least);
	reply_size += body - least;
	memcpy(reply + reply_size, TAIL, strlen(TAIL));
	reply_size += strlen(TAIL);
	reply_for = size;
}

static bool send_all(int fd, const char *bytes, size_t size)
{
	while (size > 0) {
		ssize_t sent = send(fd, bytes, size, MSG_NOSIGNAL);

		if (sent < 0)
			return false;
		bytes += sent;
		size -= (size_t)sent;
	}
	return true;
}

static bool answer(int fd, const struct request *request)
{
	static const char pong[] = "+PONG\r\n", unknown[] = "-ERR unknown command\r\n";

	if (request->is_get) {
		fill_reply(request->last_size);
		return send_all(fd, reply, reply_size);
	}
	if (request->is_ping)
		return send_all(fd, pong, strlen(pong));
	return send_all(fd, unknown, strlen(unknown));
}

/* False when the connection is over. */
static bool serve(struct connection *c)
{
	struct request request;
	ssize_t got = recv(c->fd, c->bytes + c->have, MAX_REQUEST - c->have, MSG_DONTWAIT);

	if (got <= 0)
		return got < 0 && errno == EAGAIN;
	c->have += (size_t)got;
	while (c->have > 0 && read_request(c->bytes, c->have, &request)) {
		if (!answer(c->fd, &request))
			return false;
		c->have -= request.size;
		memmove(c->bytes, c->bytes + request.size, c->have);
	}
	return c->have < MAX_REQUEST;
}

static void watch(int epoll_fd, int fd, bool listens)
{
	struct connection *c = calloc(1, sizeof(*c));
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = c };

	if (!c)
		die("calloc");
	if (!listens && !(c->bytes = malloc(MAX_REQUEST)))
		die("malloc");
	c->fd = fd;
	c->listens = listens;
	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
		die("epoll_ctl");
}

/* Returns the port. */
static int listen_at(int epoll_fd, char *where)
{
	char *colon = strrchr(where, ':');
	struct sockaddr_in address;
	socklen_t size = sizeof(address);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (!colon || fd < 0)
		die(where);
	*colon = 0;
	address = address_of(where, atoi(colon + 1));
	set_option(fd, SOL_SOCKET, SO_REUSEADDR);
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0 || listen(fd, 4096) != 0)
		die("listen");
	if (getsockname(fd, (struct sockaddr *)&address, &size) != 0)
		die("getsockname");
	watch(epoll_fd, fd, true);
	return ntohs(address.sin_port);
}

static void take(int epoll_fd, const struct connection *listener)
{
	int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0)
		return;
	set_option(fd, IPPROTO_TCP, TCP_NODELAY);
	watch(epoll_fd, fd, false);
}

int main(int argc, char **argv)
{
	struct epoll_event events[MAX_EVENTS];
	int epoll_fd = epoll_create1(EPOLL_CLOEXEC);

	if (argc < 3) {
		fprintf(stderr, "usage: echo CPU HOST:PORT...\n");
		return 2;
	}
	pin(atoi(argv[1]));
	for (int i = 2; i < argc; i++)
		printf("%s%d", i == 2 ? "ready " : " ", listen_at(epoll_fd, argv[i]));
	printf("\n");
	fflush(stdout);
	for (;;) {
		int count = epoll_wait(epoll_fd, events, MAX_EVENTS, -1);

		for (int i = 0; i < count; i++) {
			struct connection *c = events[i].data.ptr;

			if (c->listens) {
				take(epoll_fd, c);
			} else if (!serve(c)) {
				close(c->fd);
				free(c->bytes);
				free(c);
			}
		}
	}
}
