/* The listener for connections from the host: direct connections, one stream each, and the trunk.
 *
 * The peer proves with an HMAC that it knows the secret of LISTEN and the token of a stream or of the trunk. Until MOVE a
 * direct connection is idle; then splice.c moves its bytes. */
#include "streams.h"

enum { NONCE_SIZE = 16, GREETING_MS = 2000, CROWDED_MS = 100 };
enum { BAD_BURST = 64, BAD_MS = 10 }; /* invalid connections: this many at once, then one per BAD_MS */
enum { ACCEPT_PAUSE_MS = 1000 };

static u32 greetings;
static u64 paid; /* when the cost of invalid connections is paid off; nothing is accepted while that is too far ahead */
static bool listener_watched;
static int listener = -1;
u64 direct_inode = UINT64_MAX;

static void say_listening(u32 port, int error) {
	u8 payload[6];
	put_u16(payload, port);
	put_u32(payload + 2, (u32)error);
	out_frame(&exec_path, LISTENING, 0, 0, payload, sizeof payload);
}

static void charge(u64 cost_ms) { paid = (paid > now ? paid : now) + cost_ms; }

/* Bounds the work that others can cause; further connections wait in the backlog. */
static bool may_accept(void) {
	u64 when = paid > BAD_BURST * BAD_MS ? paid - BAD_BURST * BAD_MS : 0;
	if (when > now && when < directs_due) directs_due = when;
	return greetings < GREETINGS && when <= now;
}

static void watch_listener(void) {
	if (listener < 0) return;
	bool wanted = may_accept();
	if (wanted == listener_watched) return;
	watch(listener, true, wanted ? EPOLLIN : 0, DIRECT_KEY);
	listener_watched = wanted;
}

static void end_greeting(struct direct *d) {
	greetings--;
	release(d);
	watch_listener();
}

static void bad_greeting(struct direct *d) {
	charge(BAD_MS);
	end_greeting(d);
}

static int open_listener(const struct address *address, u32 *port) {
	struct sockaddr_in6 own;
	u32 size = socket_address(&own, address, 0);
	splice_check();
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

/* The host wants no new connections here; established ones continue. */
static void listen_no_more(void) {
	if (listener >= 0) sys_close(listener);
	listener = -1;
	for (struct direct *d = slots; d < slots + SLOTS; d++)
		if (d->state == GREETING) end_greeting(d);
}

const char *listener_start(const struct event *e) {
	if (!e->size) return listen_no_more(), NULL;
	struct address address = {.family = e->bytes[SECRET_SIZE]};
	u32 port = 0;
	if (listener >= 0) return "listen twice";
	auth_start(e->bytes);
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
		if (fd < 0) { /* for example no descriptors: retrying at once would be a busy loop */
			charge(BAD_BURST * BAD_MS + ACCEPT_PAUSE_MS);
			break;
		}
		struct direct *d = slots;
		while (d->state != UNUSED) d++;
		*d = (struct direct){.fd = fd, .state = GREETING, .up.from = -1, .down.from = -1};
		greetings++;
		set_limit(d, now + GREETING_MS);
		sys_setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
		if (!watch_direct(d, EPOLLIN)) end_greeting(d);
	}
	/* The host's greeting has arrived by then, so a silent peer hardly delays those behind it. */
	for (struct direct *d = slots; greetings == GREETINGS && d < slots + SLOTS; d++)
		if (d->state == GREETING && d->deadline > now + CROWDED_MS) set_limit(d, now + CROWDED_MS);
	watch_listener();
}

/* Token and nonce are the first half of the greeting. */
static void sign(const char *label, const u8 *greeting, u8 *mac) {
	auth_sign(label, greeting, TOKEN_SIZE + NONCE_SIZE, mac);
}

static struct stream *expecting(const u8 *token) {
	for (struct stream *s = streams; s < streams + streams_high; s++)
		if (s->number && s->expects && !memcmp(s->token, token, TOKEN_SIZE)) return s;
	return NULL;
}

static void become_trunk(struct direct *d, const u8 *mac) {
	watch_direct(d, 0);
	if (sys_send(d->fd, mac, DIGEST_SIZE) == DIGEST_SIZE && trunk_start(d->fd)) d->fd = -1;
	end_greeting(d);
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
	struct stream *s = expecting(d->greeting); /* none: most likely the stream has ended meanwhile */
	if (!s || others == CONNECTIONS || !open_pump(&d->up) || !open_pump(&d->down) || !watch_direct(d, EPOLLRDHUP) ||
	    sys_send(d->fd, mac, sizeof mac) != sizeof mac)
		return end_greeting(d);
	s->expects = false;
	s->direct = d;
	d->stream = s;
	d->state = PROVEN;
	d->deadline = 0;
	greetings--;
	watch_listener();
}

const char *direct_expect(struct stream *s, const u8 *token) {
	if (!auth_asked()) return "direct before listen";
	if (!s) return NULL;
	if (s->udp) return "direct for udp";
	if (s->moved) return NULL;
	direct_drop(s);
	s->expects = true;
	s->lost = false;
	memcpy(s->token, token, sizeof s->token);
	return NULL;
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
	case UNUSED: break; /* closed since epoll reported it */
	case GREETING: read_greeting(d); break;
	case PROVEN:
		if (events & (EPOLLHUP | EPOLLERR)) return lose(d);
		/* Abandoned, or complete before the MOVE that is on its way. */
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
	if (moment < directs_due) return directs_due;
	directs_due = UINT64_MAX;
	for (struct direct *d = slots; d < slots + SLOTS; d++) {
		if (d->state == UNUSED || !d->deadline) continue;
		if (moment < d->deadline) set_limit(d, d->deadline);
		else if (d->state == GREETING) bad_greeting(d);
		else if (d->state == PROVEN) lose(d);
		else release(d);
	}
	watch_listener();
	return directs_due;
}
