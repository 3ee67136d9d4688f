/* The benchmark's clients, on the host: what a way is asked to carry. One JSON object on stdout; exit 1 when it broke.
 *
 *   load connect    HOST PORT SECONDS CLIENTS   each: connect, ask, read the answer and the server's end, close, again
 *   load keep       HOST PORT SECONDS CLIENTS   each: ask and read the answer, on one connection
 *   load get|put    HOST PORT BYTES             bulk out of and into the container
 *   load concurrent HOST PORT CLIENTS           all connected at once, then all ask, then all read
 *   load accepting  HOST PORT SECONDS           tries until a connection is answered: the moment it was accepted
 *   load stall      HOST PORT SECONDS           asks for bulk and reads nothing
 *   load ask        HOST PORT KIND NUMBER       one message (see protocol.h)
 *
 * HOST PORT may be `exec:/socket` and the id of a created exec: the bare exec stream of the engine (get, put, keep). */
#define _GNU_SOURCE
#include "protocol.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { MAX_TIMES = 1 << 20 };
#define WARM_UP_NS 60e9
static char block[BLOCK];
static struct sockaddr_in server;

static void fail(const char *what) {
	printf("{\"error\": \"%s: %s\"}\n", what, strerror(errno));
	exit(1);
}

/* -- one connection, blocking: TCP, or the engine's frames on a unix socket -- */

struct pipe_end {
	int fd;
	int framed;
	unsigned frame_left;
};

static void write_all(struct pipe_end *end, const char *bytes, size_t size) {
	for (size_t done = 0; done < size;) {
		ssize_t sent = write(end->fd, bytes + done, size - done);
		if (sent <= 0) fail("write");
		done += (size_t)sent;
	}
}

static size_t read_plain(int fd, char *bytes, size_t size) {
	ssize_t got = read(fd, bytes, size);
	if (got == 0) errno = ECONNRESET;
	if (got <= 0) fail("read");
	return (size_t)got;
}

/* Bytes of the stream, without the engine's frame heads: 1 byte which stream, 3 zeros, 4 bytes length. */
static size_t read_some(struct pipe_end *end, char *bytes, size_t size) {
	if (!end->framed) return read_plain(end->fd, bytes, size);
	while (!end->frame_left) {
		unsigned char head[8];
		for (size_t have = 0; have < 8;) have += read_plain(end->fd, (char *)head + have, 8 - have);
		end->frame_left = (unsigned)head[4] << 24 | (unsigned)head[5] << 16 | (unsigned)head[6] << 8 | head[7];
	}
	size_t got = read_plain(end->fd, bytes, size < end->frame_left ? size : end->frame_left);
	end->frame_left -= (unsigned)got;
	return got;
}

static void read_message(struct pipe_end *end, char *message) {
	for (size_t have = 0; have < MESSAGE;) have += read_some(end, message + have, MESSAGE - have);
}

static struct pipe_end open_exec(const char *path, const char *exec_id) {
	struct sockaddr_un engine = {.sun_family = AF_UNIX};
	static const char body[] = "{\"Detach\":false,\"Tty\":false}";
	char head[1024];
	struct pipe_end end = {.fd = socket(AF_UNIX, SOCK_STREAM, 0), .framed = 1};
	snprintf(engine.sun_path, sizeof engine.sun_path, "%s", path);
	if (connect(end.fd, (struct sockaddr *)&engine, sizeof engine)) fail("engine");
	int size = snprintf(head, sizeof head,
	                    "POST /exec/%s/start HTTP/1.1\r\nHost: engine\r\nContent-Type: application/json\r\n"
	                    "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: %zu\r\n\r\n%s",
	                    exec_id, sizeof body - 1, body);
	write_all(&end, head, (size_t)size);
	/* Byte by byte: what follows the head is the stream already. */
	for (size_t have = 0; have < sizeof head - 1;) {
		have += read_plain(end.fd, head + have, 1);
		head[have] = 0;
		if (have >= 4 && !memcmp(head + have - 4, "\r\n\r\n", 4)) {
			if (!strstr(head, " 101 ") && !strstr(head, " 200 ")) fail("the engine refused");
			return end;
		}
	}
	errno = EPROTO;
	fail("the engine");
	return end;
}

static struct pipe_end open_end(const char *host, const char *port) {
	if (!strncmp(host, "exec:", 5)) return open_exec(host + 5, port);
	struct pipe_end end = {.fd = socket(AF_INET, SOCK_STREAM, 0)};
	static const int on = 1;
	if (connect(end.fd, (struct sockaddr *)&server, sizeof server)) fail("connect");
	setsockopt(end.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	return end;
}

static void bulk(const char *host, const char *port, char kind, unsigned long long bytes) {
	struct pipe_end end = open_end(host, port);
	char message[MESSAGE] = {0};
	put_message(message, 'k', 0);
	write_all(&end, message, MESSAGE); /* the way is open when the clock starts */
	read_message(&end, message);
	uint64_t start = monotonic_ns();
	put_message(message, kind, bytes);
	write_all(&end, message, MESSAGE);
	for (unsigned long long left = bytes; left;) {
		size_t size = left < BLOCK ? (size_t)left : BLOCK;
		if (kind == 'p') write_all(&end, block, size);
		else size = read_some(&end, block, size);
		left -= size;
	}
	if (kind == 'p') read_message(&end, message);
	double seconds = (double)(monotonic_ns() - start) / 1e9;
	printf("{\"bytes\": %llu, \"seconds\": %.6f, \"mb_s\": %.3f}\n", bytes, seconds, (double)bytes / 1e6 / seconds);
}

/* -- many connections, one epoll loop -- */

struct client {
	int fd;
	int connected, warm;
	unsigned have;
	unsigned long long number;
	uint64_t start;
	char answer[MESSAGE + 1];
};

static int epoll;
static uint32_t *times_us10; /* tenths of a microsecond: 7 minutes fit */
static unsigned times, completed, errors;
static unsigned long long next_number;
static int keep, answered;

static void open_client(struct client *c) {
	static const int on = 1;
	c->start = monotonic_ns();
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	c->connected = 0;
	c->have = 0;
	if (c->fd < 0) fail("socket");
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	if (connect(c->fd, (struct sockaddr *)&server, sizeof server) && errno != EINPROGRESS) fail("connect");
	struct epoll_event event = {.events = EPOLLOUT, .data.ptr = c};
	epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event);
}

static void ask(struct client *c) {
	char message[MESSAGE];
	c->number = ++next_number;
	c->have = 0;
	memset(message, (int)('a' + c->number % 26), MESSAGE);
	put_message(message, keep ? 'k' : 'o', c->number);
	if (keep) c->start = monotonic_ns();
	if (write(c->fd, message, MESSAGE) != MESSAGE) errors++;
}

static int answer_is_right(const struct client *c) {
	char message[MESSAGE];
	memset(message, (int)('a' + c->number % 26), MESSAGE);
	put_message(message, keep ? 'k' : 'o', c->number);
	return !memcmp(message, c->answer, MESSAGE);
}

static void note_time(uint64_t start) {
	uint64_t took = (monotonic_ns() - start) / 100;
	if (times < MAX_TIMES) times_us10[times++] = took > UINT32_MAX ? UINT32_MAX : (uint32_t)took;
}

static void again(struct client *c) {
	close(c->fd);
	open_client(c);
}

static void on_client(struct client *c, unsigned events) {
	if (!c->connected && events & EPOLLOUT) {
		int error = 0;
		socklen_t size = sizeof error;
		getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
		if (error) {
			errors++;
			return again(c);
		}
		c->connected = 1;
		struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
		epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event);
		ask(c);
		return;
	}
	ssize_t got = read(c->fd, c->answer + c->have, sizeof c->answer - c->have);
	if (got < 0 && errno == EAGAIN) return;
	if (got < 0 || (got == 0 && (keep || c->have != MESSAGE))) {
		errors++;
		return again(c);
	}
	if (got == 0) { /* the server's end, after the whole answer */
		completed++;
		return again(c);
	}
	if (c->have == 0) note_time(c->start);
	c->have += (unsigned)got;
	if (c->have >= MESSAGE && !answer_is_right(c)) errors++;
	if (c->have >= MESSAGE && keep) {
		completed++;
		answered += !c->warm;
		c->warm = 1;
		ask(c);
	}
}

static int by_size(const void *a, const void *b) {
	uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
	return (left > right) - (left < right);
}

static double percentile_ms(double part) {
	return times ? (double)times_us10[(unsigned)((double)(times - 1) * part)] / 1e4 : 0;
}

static void many(double seconds, int count) {
	struct client *clients = calloc((size_t)count, sizeof *clients);
	times_us10 = malloc(MAX_TIMES * sizeof *times_us10);
	epoll = epoll_create1(0);
	uint64_t start = monotonic_ns(), stop = start + (uint64_t)(keep ? WARM_UP_NS : seconds * 1e9), now;
	int warm = !keep;
	for (int i = 0; i < count; i++) open_client(&clients[i]);
	while ((now = monotonic_ns()) < stop) {
		struct epoll_event events[64];
		if (!warm && answered == count) { /* all are connected: only now the clock starts */
			warm = 1;
			times = completed = 0;
			start = now;
			stop = start + (uint64_t)(seconds * 1e9);
		}
		int ready = epoll_wait(epoll, events, 64, (int)((stop - now) / 1000000) + 1);
		for (int i = 0; i < ready; i++) on_client(events[i].data.ptr, events[i].events);
	}
	if (!warm) {
		errno = ETIMEDOUT;
		fail("not all were answered");
	}
	double took = (double)(now - start) / 1e9;
	qsort(times_us10, times, sizeof *times_us10, by_size);
	printf("{\"per_s\": %.3f, \"completed\": %u, \"errors\": %u, \"seconds\": %.6f,"
	       " \"p50_ms\": %.4f, \"p95_ms\": %.4f, \"p99_ms\": %.4f}\n",
	       completed / took, completed, errors, took, percentile_ms(.5), percentile_ms(.95), percentile_ms(.99));
}

static void concurrent(int count) {
	int *fds = calloc((size_t)count, sizeof *fds), right = 0;
	struct timeval limit = {.tv_sec = 60};
	uint64_t start = monotonic_ns();
	for (int i = 0; i < count; i++) {
		fds[i] = socket(AF_INET, SOCK_STREAM, 0);
		setsockopt(fds[i], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
		if (connect(fds[i], (struct sockaddr *)&server, sizeof server)) fail("connect");
	}
	for (int round = 0; round < 2; round++) {
		char message[MESSAGE] = {0}, answer[MESSAGE];
		right = 0;
		for (int i = 0; i < count; i++) {
			put_message(message, 'k', (unsigned long long)(round * count + i));
			if (write(fds[i], message, MESSAGE) != MESSAGE) errors++;
		}
		for (int i = 0; i < count; i++) {
			put_message(message, 'k', (unsigned long long)(round * count + i));
			ssize_t got = recv(fds[i], answer, MESSAGE, MSG_WAITALL);
			right += got == MESSAGE && !memcmp(message, answer, MESSAGE);
		}
	}
	printf("{\"asked\": %d, \"right\": %d, \"seconds\": %.6f}\n", count, right, (double)(monotonic_ns() - start) / 1e9);
}

/* Tries once a millisecond; the answer must be our server's, the moment is that of the accepting. */
static void accepting(double seconds) {
	uint64_t stop = monotonic_ns() + (uint64_t)(seconds * 1e9);
	while (monotonic_ns() < stop) {
		struct timespec pause = {.tv_nsec = 1000000};
		struct timeval limit = {.tv_sec = 20};
		int fd = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(fd, (struct sockaddr *)&server, sizeof server) == 0) {
			uint64_t moment = monotonic_ns();
			char message[MESSAGE] = {0}, answer[MESSAGE];
			put_message(message, 'k', 7);
			setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
			if (write(fd, message, MESSAGE) != MESSAGE || recv(fd, answer, MESSAGE, MSG_WAITALL) != MESSAGE ||
			    memcmp(message, answer, MESSAGE))
				fail("the answer");
			printf("{\"accepted_ns\": %llu, \"answered_ns\": %llu}\n", (unsigned long long)moment,
			       (unsigned long long)monotonic_ns());
			exit(0);
		}
		close(fd);
		nanosleep(&pause, NULL);
	}
	errno = ETIMEDOUT;
	fail("not accepted");
}

int main(int argc, char **argv) {
	if (argc < 4) return 2;
	const char *what = argv[1], *host = argv[2], *port = argv[3];
	struct rlimit files;
	signal(SIGPIPE, SIG_IGN);
	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	server.sin_family = AF_INET;
	server.sin_port = htons((uint16_t)atoi(port));
	if (strncmp(host, "exec:", 5) && inet_pton(AF_INET, host, &server.sin_addr) != 1) return 2;
	if ((!strcmp(what, "get") || !strcmp(what, "put")) && argc == 5) {
		bulk(host, port, what[0], strtoull(argv[4], NULL, 10));
	} else if (!strcmp(what, "ask") && argc == 6) {
		struct pipe_end end = open_end(host, port);
		char message[MESSAGE] = {0};
		put_message(message, argv[4][0], strtoull(argv[5], NULL, 10));
		write_all(&end, message, MESSAGE);
		read_message(&end, message);
		printf("{\"number\": %llu}\n", get_number(message));
	} else if (!strcmp(what, "keep") && argc == 6 && !strncmp(host, "exec:", 5)) {
		struct pipe_end end = open_end(host, port);
		uint64_t stop = monotonic_ns() + (uint64_t)(atof(argv[4]) * 1e9), start;
		char message[MESSAGE] = {0};
		times_us10 = malloc(MAX_TIMES * sizeof *times_us10);
		while ((start = monotonic_ns()) < stop) {
			put_message(message, 'k', completed++);
			write_all(&end, message, MESSAGE);
			read_message(&end, message);
			note_time(start);
		}
		qsort(times_us10, times, sizeof *times_us10, by_size);
		printf("{\"per_s\": %.3f, \"p50_ms\": %.4f}\n", completed / atof(argv[4]), percentile_ms(.5));
	} else if ((!strcmp(what, "connect") || !strcmp(what, "keep")) && argc == 6) {
		keep = what[0] == 'k';
		many(atof(argv[4]), atoi(argv[5]));
	} else if (!strcmp(what, "concurrent") && argc == 5) {
		concurrent(atoi(argv[4]));
	} else if (!strcmp(what, "stall") && argc == 5) {
		struct pipe_end end = open_end(host, port);
		char message[MESSAGE] = {0};
		put_message(message, 'g', 1000000000);
		write_all(&end, message, MESSAGE);
		usleep((useconds_t)(atof(argv[4]) * 1e6));
		puts("{}");
	} else if (!strcmp(what, "accepting") && argc == 5) {
		accepting(atof(argv[4]));
	} else {
		return 2;
	}
	return 0;
}
