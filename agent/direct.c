/* Direct connections: a TCP connection from the host that carries the bytes of one stream, past stdin and stdout.
 *
 * Who connects proves with an HMAC that it knows the secret of LISTEN and the token of a stream. Until MOVE the
 * connection only waits. Then bytes go from socket to socket through a pipe for each direction; a pipe is filled only
 * when it is empty, so that what waits is known, and a stalled side holds up its source in the kernel. Where the user has
 * more in pipes than the kernel likes (/proc/sys/fs/pipe-user-pages-soft counts those outside of the container too), a
 * new one has two pages: bytes are copied then, which is faster. */
#include "streams.h"

enum { CONNECTIONS = 64, GREETINGS = 8, SLOTS = CONNECTIONS + GREETINGS, NONCE_SIZE = 16 };
enum { GREETING_MS = 2000, CROWDED_MS = 100, LEAVE_MS = 20000 };
enum { BAD_BURST = 64, BAD_MS = 10 }; /* of the bad, so many at once, and then one each so often */
enum { ACCEPT_PAUSE_MS = 1000 };
enum { PUMP_PIPE = 512 * 1024, PUMP_TURN = 512 * 1024 }; /* all pipes together: what the kernel lets a user have */
enum { PUMP_COPY = 256 * 1024 };
#ifndef PUMP_LEAST
#define PUMP_LEAST 65536 /* tests ask for more than there ever is */
#endif
enum direct_state { UNUSED, GREETING, PROVEN, MOVED, LEAVING };
enum fault { NONE, SOURCE, SINK };

static struct direct slots[SLOTS];
static u32 greetings;
static u64 paid; /* when what the bad have cost is paid off; nothing is accepted while that is too far ahead */
static bool asked, listener_watched;
static int listener = -1;
static u8 secret[SECRET_SIZE];
static u64 next_look = UINT64_MAX;
u64 direct_inode = UINT64_MAX;

static u64 key_of(const struct direct *d) { return DIRECT_KEY + 1 + (u64)(d - slots); }

/* Mask 0 takes it out of epoll: a hang-up is told of whatever one asks for. */
static bool watch_direct(struct direct *d, u32 mask) {
	if (mask == d->mask) return true;
	if (!mask) unwatch(d->fd);
	else if (!watch(d->fd, d->mask != 0, mask, key_of(d))) return false;
	d->mask = mask;
	return true;
}

static void set_limit(struct direct *d, u64 when) {
	d->deadline = when;
	if (when < next_look) next_look = when;
}

static void say_listening(u32 port, int error) {
	u8 payload[6];
	put_u16(payload, port);
	put_u32(payload + 2, (u32)error);
	out_frame(&exec_path, LISTENING, 0, 0, payload, sizeof payload);
}

static void charge(u64 cost_ms) { paid = (paid > now ? paid : now) + cost_ms; }

/* Others can keep us as busy as this allows, and no longer than they go on: the others wait in the backlog. */
static bool may_accept(void) {
	u64 when = paid > BAD_BURST * BAD_MS ? paid - BAD_BURST * BAD_MS : 0;
	if (when > now && when < next_look) next_look = when;
	return greetings < GREETINGS && when <= now;
}

static void watch_listener(void) {
	if (listener < 0) return;
	bool wanted = may_accept();
	if (wanted == listener_watched) return;
	watch(listener, true, wanted ? EPOLLIN : 0, DIRECT_KEY);
	listener_watched = wanted;
}

static void close_pump(struct pump *p) {
	if (p->from < 0) return;
	sys_close(p->from);
	sys_close(p->to);
}

static bool no_splice; /* forbidden here, or not known: bytes are copied */

static bool open_pump(struct pump *p) {
	int ends[2] = {-1, -1};
	*p = (struct pump){-1, -1, 0, false};
	long error = no_splice ? -ENOSYS : sys_pipe(ends);
	if (error < 0) return is_missing(error);
	*p = (struct pump){ends[0], ends[1], 0, false};
	long size = sys_fcntl(ends[1], F_SETPIPE_SZ, PUMP_PIPE);
	if (size < 0) size = sys_fcntl(ends[1], F_GETPIPE_SZ, 0);
	if (size < PUMP_LEAST) {
		close_pump(p);
		p->from = p->to = -1;
	}
	return true;
}

static void release(struct direct *d) {
	if (d->fd >= 0) sys_close(d->fd); /* leaves epoll with it */
	close_pump(&d->up);
	close_pump(&d->down);
	if (d->stream) d->stream->direct = NULL;
	if (d->state == GREETING) greetings--;
	d->state = UNUSED;
	d->mask = 0;
	watch_listener();
}

static void bad_greeting(struct direct *d) {
	charge(BAD_MS);
	release(d);
}

static int open_listener(const struct address *address, u32 *port) {
	struct sockaddr_in6 own;
	u32 size = socket_address(&own, address, 0);
	no_splice = is_missing(sys_splice(-1, -1, 0));
	listener = sys_socket(own.sin6_family, SOCK_STREAM, 0);
	if (listener < 0) return -listener;
	long error = sys_bind(listener, &own, size);
	if (!error) error = sys_listen(listener, CONNECTIONS);
	if (!error) error = sys_getsockname(listener, &own, &size);
	struct stat about;
	if (!error) error = sys_fstat(listener, &about);
	if (!error && !watch(listener, false, EPOLLIN, DIRECT_KEY)) error = -ENOMEM;
	listener_watched = true;
	*port = get_u16((u8 *)&own.sin6_port);
	if (!error) direct_inode = about.st_ino;
	return (int)-error;
}

/* The host wants no new connections here: those that are proven go on. */
static void listen_no_more(void) {
	if (listener >= 0) sys_close(listener);
	listener = -1;
	for (struct direct *d = slots; d < slots + SLOTS; d++)
		if (d->state == GREETING) release(d);
}

const char *direct_listen(const struct event *e) {
	if (!e->size) return listen_no_more(), NULL;
	struct address address = {.family = e->bytes[SECRET_SIZE]};
	u32 port = 0;
	if (listener >= 0) return "listen twice";
	asked = true;
	memcpy(secret, e->bytes, sizeof secret);
	memcpy(address.bytes, e->bytes + SECRET_SIZE + 1, e->size - SECRET_SIZE - 1);
	int error = open_listener(&address, &port);
	if (error && listener >= 0) sys_close(listener), listener = -1;
	say_listening(error ? 0 : port, error);
	return NULL;
}

static void accept_some(void) {
	static const int on = 1;
	while (may_accept()) {
		int fd = sys_accept(listener);
		if (fd == -EAGAIN || fd == -EINTR || fd == -ECONNABORTED) return;
		if (fd < 0) { /* no descriptors, say: to try again and again would be all that we do */
			charge(BAD_BURST * BAD_MS + ACCEPT_PAUSE_MS);
			break;
		}
		struct direct *d = slots;
		while (d->state != UNUSED) d++;
		*d = (struct direct){.fd = fd, .state = GREETING, .up.from = -1, .down.from = -1};
		greetings++;
		set_limit(d, now + GREETING_MS);
		sys_setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
		if (!watch_direct(d, EPOLLIN)) release(d);
	}
	/* The host's words are there by then. So silence costs those behind it little. */
	for (struct direct *d = slots; greetings == GREETINGS && d < slots + SLOTS; d++)
		if (d->state == GREETING && d->deadline > now + CROWDED_MS) set_limit(d, now + CROWDED_MS);
	watch_listener();
}

bool direct_asked(void) { return asked; }

void direct_sign(const char *label, const u8 *bytes, u32 size, u8 *mac) {
	u8 message[HMAC_MOST];
	u32 before = (u32)text_size(label);
	memcpy(message, label, before);
	memcpy(message + before, bytes, size);
	hmac_sha256(secret, sizeof secret, message, before + size, mac);
}

/* Token and nonce are the first half of the greeting. */
static void sign(const char *label, const u8 *greeting, u8 *mac) {
	direct_sign(label, greeting, TOKEN_SIZE + NONCE_SIZE, mac);
}

bool differ(const u8 *a, const u8 *b, u32 size) {
	u32 found = 0;
	while (size--) found |= (u32)(a[size] ^ b[size]);
	return found != 0;
}

static struct stream *expecting(const u8 *token) {
	for (struct stream *s = streams; s < streams + streams_high; s++)
		if (s->number && s->expects && !memcmp(s->token, token, TOKEN_SIZE)) return s;
	return NULL;
}

static void become_trunk(struct direct *d, const u8 *mac) {
	watch_direct(d, 0);
	if (sys_send(d->fd, mac, DIGEST_SIZE) == DIGEST_SIZE && trunk_start(d->fd)) d->fd = -1;
	release(d);
}

static void read_greeting(struct direct *d) {
	u8 mac[DIGEST_SIZE];
	long size = sys_read(d->fd, d->greeting + d->have, sizeof d->greeting - d->have);
	if (size == -EAGAIN || size == -EINTR) return;
	if (size <= 0) return bad_greeting(d);
	d->have = (u8)(d->have + size);
	if (d->have < sizeof d->greeting) return;
	sign("autoforward direct host", d->greeting, mac);
	if (differ(mac, d->greeting + TOKEN_SIZE + NONCE_SIZE, sizeof mac)) return bad_greeting(d);
	sign("autoforward direct agent", d->greeting, mac);
	if (trunk_takes(d->greeting)) return become_trunk(d, mac);
	u32 others = 0;
	for (u32 i = 0; i < SLOTS; i++) others += slots[i].state > GREETING;
	struct stream *s = expecting(d->greeting); /* none: it has ended meanwhile, most likely */
	if (!s || others == CONNECTIONS || !open_pump(&d->up) || !open_pump(&d->down) || !watch_direct(d, EPOLLRDHUP) ||
	    sys_send(d->fd, mac, sizeof mac) != sizeof mac)
		return release(d);
	s->expects = false;
	s->direct = d;
	d->stream = s;
	d->state = PROVEN;
	d->deadline = 0;
	greetings--;
	watch_listener();
}

const char *direct_expect(struct stream *s, const u8 *token) {
	if (!asked) return "direct before listen";
	if (!s) return NULL;
	if (s->udp) return "direct for udp";
	if (s->moved) return NULL;
	direct_drop(s);
	s->expects = true;
	s->lost = false;
	memcpy(s->token, token, sizeof s->token);
	return NULL;
}

const char *direct_move(struct stream *s) {
	struct direct *d = s->direct;
	if (s->moved || (!d && !s->lost)) return s->moved ? "move twice" : "move without a connection";
	if (!d) return reset(s, ECONNRESET), NULL;
	s->moved = true;
	d->state = MOVED;
	d->deadline = 0;
	d->up.done = s->host_end;
	out_frame(s->path, MOVE, 0, s->number, NULL, 0);
	if (s->server_end) sys_shutdown(d->fd, SHUT_WR);
	if (s->state == CONNECTED) direct_run(s, true, true);
	else if (!watch_direct(d, 0)) reset(s, ENOMEM);
	return NULL;
}

/* Without a pipe: a turn's worth of what the source has. What the sink does not take is left with the source. */
static enum fault copy(struct pump *p, int source, int sink, int *error) {
	static u8 bytes[PUMP_COPY];
	for (u32 sum = 0; sum < PUMP_TURN;) {
		long got = p->done ? -EAGAIN : sys_peek(source, bytes, sizeof bytes);
		p->done = p->done || got == 0;
		p->held = got < 0 ? 0 : (u32)got;
		if (p->done || got == -EAGAIN || got == -EINTR) return NONE;
		if (got < 0) return *error = (int)-got, SOURCE;
		long put = sys_send(sink, bytes, got);
		if (put == -EAGAIN || put == -EINTR) return NONE;
		if (put <= 0) return *error = put ? (int)-put : EIO, SINK;
		sys_discard(source, put);
		p->held -= (u32)put;
		sum += (u32)put;
	}
	return NONE;
}

/* What waits in the pipe first, then what the source has, a turn's worth of it. */
static enum fault pump(struct pump *p, int source, int sink, int *error) {
	if (p->from < 0) return copy(p, source, sink, error);
	for (u32 sum = 0; sum < PUMP_TURN;) {
		if (!p->held) {
			long got = p->done ? -EAGAIN : sys_splice(source, p->to, PUMP_PIPE);
			p->done = p->done || got == 0;
			if (p->done || got == -EAGAIN || got == -EINTR) return NONE;
			if (got < 0) return *error = (int)-got, SOURCE;
			p->held = (u32)got;
		}
		long put = sys_splice(p->from, sink, p->held);
		if (put == -EAGAIN || put == -EINTR) return NONE;
		if (put <= 0) return *error = put ? (int)-put : EIO, SINK;
		p->held -= (u32)put;
		sum += (u32)put;
	}
	return NONE;
}

void direct_run(struct stream *s, bool up, bool down) {
	struct direct *d = s->direct;
	int error;
	if (s->first && !write_kept(s)) return;
	if (up && !s->first && !s->write_error) {
		enum fault fault = pump(&d->up, d->fd, s->fd, &error);
		if (fault == SOURCE) return reset(s, error);
		if (fault == SINK && !write_failed(s, error)) return;
		pass_host_end(s);
	}
	if (s->write_error) d->up.done = true, d->up.held = 0;
	if (down && !s->server_end) {
		enum fault fault = pump(&d->down, s->fd, d->fd, &error);
		if (fault != NONE) return reset(s, error);
		if (d->down.done) {
			s->server_end = true;
			if (s->write_error) return reset(s, s->write_error);
			out_frame(s->path, END, 0, s->number, NULL, 0);
			sys_shutdown(d->fd, SHUT_WR);
		}
	}
	if (still_open(s)) direct_refresh(s);
}

void direct_refresh(struct stream *s) {
	struct direct *d = s->direct;
	bool blocked = s->first || d->up.held;
	u32 server = (!s->server_end && !d->down.held ? EPOLLIN : 0) | (blocked ? EPOLLOUT : 0);
	u32 host = (!d->up.done && !blocked ? EPOLLIN : 0) | (d->down.held ? EPOLLOUT : 0);
	/* A server that has ended and hangs up has reset: that is to be told. */
	if (!server && !s->server_end) park(s);
	else if (!watch_socket(s, server)) return reset(s, ENOMEM);
	if (!watch_direct(d, host)) reset(s, ENOMEM);
}

bool direct_through(const struct direct *d) { return d->up.done && !d->up.held; }

void direct_leave(struct stream *s) {
	struct direct *d = s->direct;
	if (!d) return;
	s->direct = NULL;
	d->stream = NULL;
	d->state = LEAVING;
	set_limit(d, now + LEAVE_MS);
	/* To close with bytes unread would be a reset, and that overtakes what the host has not read yet. */
	sys_shutdown(d->fd, SHUT_WR);
	if (!watch_direct(d, EPOLLIN)) release(d);
}

void direct_drop(struct stream *s) {
	if (s->direct) release(s->direct);
}

static void lose(struct direct *d) {
	d->stream->lost = true;
	release(d);
}

void direct_ready(u64 key, u32 events) {
	if (key == DIRECT_KEY) {
		if (listener >= 0) accept_some();
		return;
	}
	struct direct *d = &slots[key - DIRECT_KEY - 1];
	switch ((enum direct_state)d->state) {
	case UNUSED: break; /* gone since epoll told of it */
	case GREETING: read_greeting(d); break;
	case PROVEN:
		if (events & (EPOLLHUP | EPOLLERR)) return lose(d);
		/* Given up, or all said before the MOVE that is on its way. */
		set_limit(d, now + LEAVE_MS);
		watch_direct(d, 0);
		break;
	case MOVED: direct_run(d->stream, events & ~(u32)EPOLLOUT, events & ~(u32)EPOLLIN); break;
	case LEAVING: {
		long size = sys_discard(d->fd, PUMP_TURN);
		if (size <= 0 && size != -EAGAIN && size != -EINTR) release(d);
	}
	}
}

u64 direct_expire(u64 moment) {
	if (moment < next_look) return next_look;
	next_look = UINT64_MAX;
	for (struct direct *d = slots; d < slots + SLOTS; d++) {
		if (d->state == UNUSED || !d->deadline) continue;
		if (moment < d->deadline) set_limit(d, d->deadline);
		else if (d->state == GREETING) bad_greeting(d);
		else if (d->state == PROVEN) lose(d);
		else release(d);
	}
	watch_listener();
	return next_look;
}
