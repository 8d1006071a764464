/* Times connect() itself: blocking, one at a time, at a fixed rate. Prints JSON.
 *
 * usage: connect HOST PORT COUNT RATE CPU
 */
#include "histogram.h"

static struct histogram times;

static void connect_once(const struct sockaddr_in *address)
{
	/* A reset leaves no TIME_WAIT behind: ports do not run out. */
	struct linger reset = { .l_onoff = 1, .l_linger = 0 };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	uint64_t begin_ns;

	if (fd < 0)
		die("socket");
	begin_ns = now_ns();
	if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) != 0)
		die("connect");
	record(&times, now_ns() - begin_ns);
	if (setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)) != 0)
		die("SO_LINGER");
	close(fd);
}

int main(int argc, char **argv)
{
	struct sockaddr_in address;
	uint64_t start_ns, period_ns;
	int count;

	if (argc != 6) {
		fprintf(stderr, "usage: connect HOST PORT COUNT RATE CPU\n");
		return 2;
	}
	address = address_of(argv[1], atoi(argv[2]));
	count = atoi(argv[3]);
	period_ns = (uint64_t)((double)NS_PER_S / atof(argv[4]));
	pin(atoi(argv[5]));
	start_ns = now_ns();
	for (int i = 0; i < count; i++) {
		uint64_t due_ns = start_ns + (uint64_t)i * period_ns;
		struct timespec due = { .tv_sec = (time_t)(due_ns / NS_PER_S),
					.tv_nsec = (long)(due_ns % NS_PER_S) };

		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
		connect_once(&address);
	}
	printf("{");
	print_histogram(&times);
	printf("}\n");
	return 0;
}
