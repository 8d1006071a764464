/* Open-loop load of MOA requests over RESP. Prints JSON.
 *
 * Request number i is due at start + i / rate and belongs to connection i mod connections; a
 * connection has one request under way, later ones wait for it. A latency counts from the
 * moment the request was due, so that waiting is part of it. With rate 0 the loop is closed:
 * each connection sends as soon as it has its reply, and a latency counts from there.
 *
 * usage: load HOST PORT SERVICE CONNECTIONS RATE WARMUP_S SECONDS BODY_BYTES CPU
 */
#include "histogram.h"

#include <sys/epoll.h>
#include <sys/timerfd.h>

#define MAX_EVENTS 256
#define MAX_BODY (128 * 1024)
#define HEAD "{\"action\":\"%s\",\"params\":{\"m\":\"echo\",\"args\":[\""
#define REPLY_OK "{\"ec\":200"
#define HEAD_SIZE 64
#define GRACE_NS (2 * NS_PER_S)
#define CLOSED_LOOP_TICK_NS 10000000ULL

struct options {
	struct sockaddr_in address;
	unsigned int connections;
	uint64_t period_ns; /* 0: closed loop */
	uint64_t warmup_ns;
	uint64_t length_ns;
};

struct connection {
	int fd;
	bool busy;
	uint64_t due; /* how many of its requests have become due; `sent` counts these */
	uint64_t sent;
	uint64_t begin_ns;
	size_t written;
	size_t have; /* bytes of the reply */
	size_t need; /* 0 while its length line is incomplete */
	char head[HEAD_SIZE];
};

static struct options options;
static struct connection *connections;
static struct histogram latencies;
static char request[MAX_BODY + 64];
static size_t request_size;
static uint64_t start_ns, end_ns, issued, done, queued, under_way;
static uint64_t bad_replies, closed;
static int epoll_fd;

static void make_request(const char *service, size_t body_size)
{
	static char body[MAX_BODY];
	size_t at;

	at = (size_t)snprintf(body, sizeof(body), HEAD, service);
	while (at + 4 < body_size && at + 5 < sizeof(body))
		body[at++] = 'x';
	memcpy(body + at, "\"]}}", 4);
	at += 4;
	request_size = (size_t)sprintf(request, "*2\r\n$3\r\nGET\r\n$%zu\r\n", at);
	memcpy(request + request_size, body, at);
	memcpy(request + request_size + at, "\r\n", 2);
	request_size += at + 2;
}

static void watch(struct connection *c, int operation, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.ptr = c };

	if (epoll_ctl(epoll_fd, operation, c->fd, &event) != 0)
		die("epoll_ctl");
}

static void open_connection(struct connection *c)
{
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (c->fd < 0)
		die("socket");
	set_option(c->fd, IPPROTO_TCP, TCP_NODELAY);
	if (connect(c->fd, (struct sockaddr *)&options.address, sizeof(options.address)) != 0)
		die("connect");
	watch(c, EPOLL_CTL_ADD, EPOLLIN);
}

static void send_next(struct connection *c);

static void go_on(struct connection *c)
{
	if (options.period_ns ? c->sent < c->due : now_ns() < end_ns)
		send_next(c);
}

static void fail(struct connection *c, uint64_t *why)
{
	(*why)++;
	under_way -= c->busy;
	c->busy = false;
	close(c->fd);
	open_connection(c);
	go_on(c);
}

static void write_rest(struct connection *c)
{
	ssize_t sent = send(c->fd, request + c->written, request_size - c->written,
			    MSG_DONTWAIT | MSG_NOSIGNAL);

	if (sent < 0 && errno != EAGAIN) {
		fail(c, &closed);
		return;
	}
	c->written += sent > 0 ? (size_t)sent : 0;
	if (c->written < request_size)
		watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
}

static void send_next(struct connection *c)
{
	uint64_t number = c->sent * options.connections + (uint64_t)(c - connections);

	c->begin_ns = options.period_ns ? start_ns + number * options.period_ns : now_ns();
	c->sent++;
	c->busy = true;
	c->have = c->need = c->written = 0;
	under_way++;
	write_rest(c);
}

static void on_due(uint64_t until_ns)
{
	while (start_ns + issued * options.period_ns <= until_ns) {
		struct connection *c = &connections[issued++ % options.connections];

		c->due++;
		if (c->busy)
			queued++;
		else
			send_next(c);
	}
}

static void on_reply(struct connection *c)
{
	uint64_t now = now_ns();

	if (c->begin_ns >= start_ns + options.warmup_ns && c->begin_ns < end_ns) {
		record(&latencies, now - c->begin_ns);
		done++;
	}
	c->busy = false;
	under_way--;
	go_on(c);
}

static void read_reply(struct connection *c)
{
	static char bytes[64 * 1024];
	ssize_t got = recv(c->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
	const char *lf;

	if (got < 0 && errno == EAGAIN)
		return;
	if (got <= 0 || !c->busy) {
		fail(c, got <= 0 ? &closed : &bad_replies);
		return;
	}
	for (ssize_t i = 0; i < got && c->have + (size_t)i < HEAD_SIZE; i++)
		c->head[c->have + (size_t)i] = bytes[i];
	c->have += (size_t)got;
	lf = memchr(c->head, '\n', c->have < HEAD_SIZE ? c->have : HEAD_SIZE);
	if (!lf)
		return;
	c->need = (size_t)(lf - c->head) + 1 + (size_t)atoi(c->head + 1) + 2;
	if (c->head[0] != '$' || c->have > c->need)
		fail(c, &bad_replies);
	else if (c->have == c->need && memcmp(lf + 1, REPLY_OK, strlen(REPLY_OK)) != 0)
		fail(c, &bad_replies);
	else if (c->have == c->need)
		on_reply(c);
}

static int start_timer(uint64_t period_ns)
{
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	struct itimerspec when = {
		.it_interval = { (time_t)(period_ns / NS_PER_S), (long)(period_ns % NS_PER_S) },
		.it_value = { (time_t)(start_ns / NS_PER_S), (long)(start_ns % NS_PER_S) },
	};
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = NULL };

	if (fd < 0 || timerfd_settime(fd, TFD_TIMER_ABSTIME, &when, NULL) != 0 ||
	    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
		die("timerfd");
	return fd;
}

static void on_events(int timer_fd, const struct epoll_event *events, int count)
{
	uint64_t ticks;

	for (int i = 0; i < count; i++) {
		struct connection *c = events[i].data.ptr;

		if (!c) {
			if (read(timer_fd, &ticks, sizeof(ticks)) < 0 && errno != EAGAIN)
				die("timerfd");
			continue;
		}
		if (events[i].events & EPOLLOUT) {
			watch(c, EPOLL_CTL_MOD, EPOLLIN);
			write_rest(c);
		}
		if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
			read_reply(c);
	}
}

static void run(void)
{
	struct epoll_event events[MAX_EVENTS];
	int timer_fd;

	start_ns = now_ns() + NS_PER_S / 20;
	end_ns = start_ns + options.warmup_ns + options.length_ns;
	timer_fd = start_timer(options.period_ns ? options.period_ns : CLOSED_LOOP_TICK_NS);
	for (unsigned int i = 0; !options.period_ns && i < options.connections; i++)
		send_next(&connections[i]);
	for (;;) {
		int count = epoll_wait(epoll_fd, events, MAX_EVENTS, -1);
		uint64_t now = now_ns();

		if (options.period_ns)
			on_due(now < end_ns ? now : end_ns - 1);
		on_events(timer_fd, events, count);
		if (now >= end_ns + GRACE_NS || (now >= end_ns && under_way == 0))
			return;
	}
}

/* Sent and not answered, or due and never sent. */
static uint64_t unanswered(void)
{
	uint64_t count = under_way;

	for (unsigned int i = 0; options.period_ns && i < options.connections; i++)
		count += connections[i].due - connections[i].sent;
	return count;
}

int main(int argc, char **argv)
{
	double rate;

	if (argc != 10) {
		fprintf(stderr, "usage: load HOST PORT SERVICE CONNECTIONS RATE WARMUP_S SECONDS "
				"BODY_BYTES CPU\n");
		return 2;
	}
	options.address = address_of(argv[1], atoi(argv[2]));
	options.connections = (unsigned int)atoi(argv[4]);
	rate = atof(argv[5]);
	options.period_ns = rate > 0 ? (uint64_t)((double)NS_PER_S / rate) : 0;
	options.warmup_ns = (uint64_t)(atof(argv[6]) * (double)NS_PER_S);
	options.length_ns = (uint64_t)(atof(argv[7]) * (double)NS_PER_S);
	make_request(argv[3], (size_t)atol(argv[8]));
	pin(atoi(argv[9]));
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	connections = calloc(options.connections, sizeof(*connections));
	for (unsigned int i = 0; i < options.connections; i++)
		open_connection(&connections[i]);
	run();
	printf("{");
	print_histogram(&latencies);
	printf(",\"per_s\":%.1f,\"queued\":%llu",
	       (double)done * (double)NS_PER_S / (double)options.length_ns,
	       (unsigned long long)queued);
	printf(",\"errors\":{\"closed\":%llu,\"bad_reply\":%llu,\"unanswered\":%llu}}\n",
	       (unsigned long long)closed, (unsigned long long)bad_replies,
	       (unsigned long long)unanswered());
	return 0;
}
