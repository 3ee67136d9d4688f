/* The benchmark's server, static, in the container: one epoll loop, so that nothing but the way to it is measured.
 *
 *   server PORT [COUNT]    listens on all addresses, on COUNT ports from there on
 *   server -               one conversation on stdin and stdout, for bare exec streams */
#define _GNU_SOURCE
#include "protocol.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

struct conversation {
	int fd;
	int listens_on; /* the port, 0 for a connection */
	unsigned have;
	unsigned long long to_send, to_take;
	char message[MESSAGE];
};

enum { MAX_LISTENERS = 4096 };
static char block[BLOCK];
static int epoll;
static struct conversation *listeners[MAX_LISTENERS];

static void watch(struct conversation *c, unsigned events, int how) {
	struct epoll_event event = {.events = events, .data.ptr = c};
	epoll_ctl(epoll, how, c->fd, &event);
}

static int start_listening(int port) {
	static const int on = 1;
	struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	int slot = 0;
	while (slot < MAX_LISTENERS && listeners[slot]) slot++;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (slot == MAX_LISTENERS || bind(fd, (struct sockaddr *)&any, sizeof any) || listen(fd, 4096)) {
		close(fd);
		return -1;
	}
	struct conversation *c = calloc(1, sizeof *c);
	c->fd = fd;
	c->listens_on = port;
	listeners[slot] = c;
	watch(c, EPOLLIN, EPOLL_CTL_ADD);
	return 0;
}

static void stop_listening(int port) {
	for (int slot = 0; slot < MAX_LISTENERS; slot++)
		if (listeners[slot] && listeners[slot]->listens_on == port) {
			close(listeners[slot]->fd);
			listeners[slot]->fd = -1; /* left allocated: an event of this turn may still name it */
			listeners[slot] = NULL;
		}
}

/* Answers a message; false when the conversation is over. Small answers fit any socket's buffer. */
static int answer(struct conversation *c, int out) {
	char kind = c->message[0];
	unsigned long long number = get_number(c->message);
	c->have = 0;
	if (kind == 'g') {
		c->to_send = number;
		return 1;
	}
	if (kind == 'p') {
		c->to_take = number;
		if (number) return 1;
	}
	if (kind == 'l') put_message(c->message, 'l', start_listening((int)number) ? 0 : monotonic_ns());
	if (kind == 'c') stop_listening((int)number);
	return write(out, c->message, MESSAGE) == MESSAGE && kind != 'o';
}

static void end(struct conversation *c) {
	close(c->fd);
	free(c);
}

static void serve(struct conversation *c) {
	for (;;) {
		if (c->to_send) {
			size_t size = c->to_send < BLOCK ? (size_t)c->to_send : BLOCK;
			ssize_t sent = write(c->fd, block, size);
			if (sent < 0 && errno == EAGAIN) return watch(c, EPOLLOUT, EPOLL_CTL_MOD);
			if (sent < 0) return end(c);
			c->to_send -= (unsigned long long)sent;
			if (!c->to_send) watch(c, EPOLLIN, EPOLL_CTL_MOD);
			continue;
		}
		size_t size = c->to_take ? (c->to_take < BLOCK ? (size_t)c->to_take : BLOCK) : MESSAGE - c->have;
		ssize_t got = read(c->fd, c->to_take ? block : c->message + c->have, size);
		if (got < 0 && errno == EAGAIN) return;
		if (got <= 0) return end(c);
		if (c->to_take) {
			c->to_take -= (unsigned long long)got;
			if (!c->to_take && write(c->fd, c->message, MESSAGE) != MESSAGE) return end(c);
		} else if ((c->have += (unsigned)got) == MESSAGE && !answer(c, c->fd)) {
			return end(c);
		} else if (got < (ssize_t)size) {
			return;
		}
	}
}

static void take(struct conversation *listener) {
	static const int on = 1;
	int fd;
	while (listener->fd >= 0 && (fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
		struct conversation *c = calloc(1, sizeof *c);
		c->fd = fd;
		watch(c, EPOLLIN, EPOLL_CTL_ADD);
	}
}

static int move_all(ssize_t (*move)(int, char *, size_t), int fd, char *bytes, size_t size) {
	for (size_t done = 0; done < size;) {
		ssize_t moved = move(fd, bytes + done, size - done);
		if (moved <= 0) return 0;
		done += (size_t)moved;
	}
	return 1;
}

static ssize_t read_some(int fd, char *bytes, size_t size) { return read(fd, bytes, size); }
static ssize_t write_some(int fd, char *bytes, size_t size) { return write(fd, bytes, size); }

static int on_pipes(void) {
	struct conversation c = {0};
	while (move_all(read_some, 0, c.message, MESSAGE)) {
		if (!answer(&c, 1)) return 0;
		for (; c.to_send; c.to_send -= c.to_send < BLOCK ? c.to_send : BLOCK)
			if (!move_all(write_some, 1, block, c.to_send < BLOCK ? (size_t)c.to_send : BLOCK)) return 1;
		if (!c.to_take) continue;
		while (c.to_take) {
			ssize_t got = read(0, block, c.to_take < BLOCK ? (size_t)c.to_take : BLOCK);
			if (got <= 0) return 1;
			c.to_take -= (unsigned long long)got;
		}
		if (write(1, c.message, MESSAGE) != MESSAGE) return 1;
	}
	return 0;
}

int main(int argc, char **argv) {
	if (argc < 2) return 2;
	signal(SIGPIPE, SIG_IGN);
	if (argv[1][0] == '-') return on_pipes();
	struct rlimit files;
	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	epoll = epoll_create1(0);
	for (int i = argc > 2 ? atoi(argv[2]) : 1; i--;)
		if (start_listening(atoi(argv[1]) + i)) return 1;
	for (;;) {
		struct epoll_event events[256];
		int count = epoll_wait(epoll, events, 256, -1);
		for (int i = 0; i < count; i++) {
			struct conversation *c = events[i].data.ptr;
			if (c->listens_on) take(c);
			else serve(c);
		}
	}
}
