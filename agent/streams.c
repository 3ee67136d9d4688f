/* Connections to servers: dialled in the order that the host gave, then bytes both ways under credit.
 *
 * A hang-up is reported by epoll whatever one asked for. Where it comes while the host gives no credit, the socket leaves
 * epoll with its bytes unread and comes back with the next CREDIT. */
#include "agent.h"

enum { MAX_STREAMS = 4096, TURN = 32 * 1024, MAX_DATAGRAM = 65507, MAX_FOUND = 16 };
enum { CONNECT_MS = 20000, DNS_MS = 2000, DNS_SECOND_ANSWER_MS = 200, UDP_IDLE_MS = 60000 };
enum stream_state { RESOLVING, CONNECTING, CONNECTED };

struct piece {
	struct piece *next;
	u32 start, end;
	u8 bytes[CHUNK - 16];
};

/* Lives in a chunk while the stream is on its way to a server. */
struct dial {
	u8 payload[MAX_OPEN];
	u32 size, at;
	u8 index, addresses; /* of those that the host gave */
	u8 found_at, found_count;
	u8 answered; /* bit 0: A, bit 1: AAAA */
	u16 id;
	int error;
	struct address found[MAX_FOUND];
};
_Static_assert(sizeof(struct dial) <= CHUNK && sizeof(struct piece) == CHUNK, "both fit a chunk");

struct stream {
	u32 number; /* 0: not in use */
	int fd;
	u32 credit;   /* bytes that the host still takes */
	u32 granted;  /* bytes that the host may still send */
	u32 owed;     /* taken by the server, not given back yet */
	u32 kept;     /* of datagrams that wait for the name, and what they cost */
	u32 mask;     /* what epoll watches */
	u64 deadline; /* 0: none */
	struct dial *dial;
	struct piece *first, *last;
	int write_error;
	u16 next; /* index + 1 in the chain of its hash, or of the unused */
	u8 state;
	bool udp, in_epoll, host_end, server_end;
};

static struct stream streams[MAX_STREAMS];
static u16 chains[MAX_STREAMS], unused, high; /* streams[high] and above were never used */
static int epoll;
static u32 host_window;
static u64 next_look = UINT64_MAX;
static u8 datagram[MAX_PAYLOAD]; /* frames do not interleave: one is being put together at most */
static u32 datagram_size;

void streams_start(int epoll_fd, u32 window) {
	epoll = epoll_fd;
	host_window = window;
}

static struct stream *find(u32 number) {
	u16 at = chains[number % MAX_STREAMS];
	while (at && streams[at - 1].number != number) at = streams[at - 1].next;
	return at ? &streams[at - 1] : NULL;
}

static struct stream *add(u32 number) {
	u16 at = unused;
	if (at) unused = streams[at - 1].next;
	else if (high < MAX_STREAMS) at = ++high;
	else return NULL;
	struct stream *s = &streams[at - 1];
	u16 *chain = &chains[number % MAX_STREAMS];
	*s = (struct stream){.number = number, .fd = -1, .credit = host_window, .granted = WINDOW, .next = *chain};
	*chain = at;
	return s;
}

static void drop_buffer(struct stream *s) {
	while (s->first) {
		struct piece *piece = s->first;
		s->first = piece->next;
		chunk_give(piece);
	}
}

static void close_socket(struct stream *s) {
	if (s->fd >= 0) sys_close(s->fd); /* leaves epoll with it */
	s->fd = -1;
	s->in_epoll = false;
}

static void finish(struct stream *s) {
	close_socket(s);
	drop_buffer(s);
	if (s->dial) chunk_give(s->dial);
	u16 at = (u16)(s - streams + 1), *chain = &chains[s->number % MAX_STREAMS];
	while (*chain != at) chain = &streams[*chain - 1].next;
	*chain = s->next;
	s->number = 0;
	s->next = unused;
	unused = at;
}

/* Closes so that the server sees a reset: what it has got of this connection may not be whole. */
static void cut(struct stream *s) {
	static const int linger[2] = {1, 0};
	if (s->fd >= 0 && !s->udp) sys_setsockopt(s->fd, SOL_SOCKET, SO_LINGER, linger, sizeof linger);
	finish(s);
}

static void reset(struct stream *s, int error) {
	out_value(RESET, s->number, (u32)(error == EPIPE ? ECONNRESET : error));
	cut(s);
}

static void refuse(u32 number, int error) { out_value(REFUSED, number, (u32)error); }

static void set_deadline(struct stream *s, u64 when) {
	s->deadline = when;
	if (when < next_look) next_look = when;
}

static bool watch_socket(struct stream *s, u32 mask) {
	if (s->in_epoll && s->mask == mask) return true;
	struct epoll_event event = {mask, (u64)s->number << 32 | (u64)(s - streams)};
	if (sys_epoll_ctl(epoll, s->in_epoll ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, s->fd, &event) < 0) return false;
	s->in_epoll = true;
	s->mask = mask;
	return true;
}

/* Asks epoll for what this stream can do now. May end it: the last call of who makes it. */
static void refresh(struct stream *s) {
	bool readable = s->udp ? s->credit >= MAX_DATAGRAM : s->credit && !s->server_end;
	u32 mask = (readable ? EPOLLIN : 0) | (s->first ? EPOLLOUT : 0);
	bool parked = !s->in_epoll && s->mask == EPOLLHUP;
	if (parked && !mask) return;
	if (!watch_socket(s, mask)) reset(s, ENOMEM);
}

static void park(struct stream *s) {
	sys_epoll_ctl(epoll, EPOLL_CTL_DEL, s->fd, NULL);
	s->in_epoll = false;
	s->mask = EPOLLHUP;
}

/* Both directions are through: false when the stream is gone. */
static bool still_open(struct stream *s) {
	if (!s->host_end || !s->server_end || s->first) return true;
	finish(s);
	return false;
}

static void give_back(struct stream *s, u32 size) {
	s->owed += size;
	if (s->owed < WINDOW / 4 || s->host_end) return;
	out_value(CREDIT, s->number, s->owed);
	s->granted += s->owed;
	s->owed = 0;
}

/* The server takes no more. What it still has to say is read to its end; then comes the reset. */
static bool write_failed(struct stream *s, int error) {
	drop_buffer(s);
	s->write_error = error;
	if (!s->server_end) return true;
	reset(s, error);
	return false;
}

/* Appends to the buffer; false when the pool is used up. */
static bool keep(struct stream *s, const u8 *bytes, u32 size) {
	while (size) {
		if (!s->first || s->last->end == sizeof s->last->bytes) {
			struct piece *piece = chunk_take();
			if (!piece) return false;
			piece->next = NULL;
			piece->start = piece->end = 0;
			if (s->first) s->last->next = piece;
			else s->first = piece;
			s->last = piece;
		}
		u32 take = lesser(size, (u32)sizeof s->last->bytes - s->last->end);
		memcpy(s->last->bytes + s->last->end, bytes, take);
		s->last->end += take;
		bytes += take;
		size -= take;
	}
	return true;
}

/* Takes `size` bytes from the front of the buffer, into `to` unless that is NULL. */
static void take_kept(struct stream *s, u8 *to, u32 size) {
	while (size) {
		struct piece *p = s->first;
		u32 take = lesser(size, p->end - p->start);
		if (to) memcpy(to, p->bytes + p->start, take), to += take;
		p->start += take;
		size -= take;
		if (p->start < p->end) continue;
		s->first = p->next;
		chunk_give(p);
	}
}

/* Writes what is kept until the server takes no more; false when the stream is gone. */
static bool write_kept(struct stream *s) {
	while (s->first) {
		struct iovec parts[16];
		long count = 0;
		for (struct piece *p = s->first; p && count < 16; p = p->next)
			parts[count++] = (struct iovec){p->bytes + p->start, p->end - p->start};
		long written = sys_writev(s->fd, parts, count);
		if (written == -EAGAIN) return true;
		if (written < 0) return write_failed(s, (int)-written);
		give_back(s, (u32)written);
		take_kept(s, NULL, (u32)written);
	}
	if (s->host_end && !s->server_end) sys_shutdown(s->fd, SHUT_WR); /* else closing does it */
	return still_open(s);
}

/* An earlier one's "port unreachable" is told instead of sending this one: hence twice. */
static void send_datagram(struct stream *s, const u8 *bytes, u32 size) {
	if (sys_send(s->fd, bytes, size) == -ECONNREFUSED) sys_send(s->fd, bytes, size);
	give_back(s, size);
}

/* What came while the name was looked up: each with its size before it. */
static void send_kept_datagrams(struct stream *s) {
	static u8 kept[MAX_PAYLOAD]; /* `datagram` may hold the beginning of another */
	while (s->first) {
		take_kept(s, kept, 2);
		u32 size = get_u16(kept);
		take_kept(s, kept, size);
		send_datagram(s, kept, size);
	}
}

static void opened(struct stream *s) {
	out_frame(OPENED, 0, s->number, &s->dial->index, 1);
	chunk_give(s->dial);
	s->dial = NULL;
	s->state = CONNECTED;
	s->deadline = 0;
	if (s->udp) {
		set_deadline(s, now + UDP_IDLE_MS);
		send_kept_datagrams(s);
	}
	if (s->udp || write_kept(s)) refresh(s);
}

/* A dial of a port that nobody listens on can meet itself, where the kernel picked that very port to dial from. */
static bool met_itself(struct stream *s, u32 port) {
	struct sockaddr_in6 own = {0};
	int size = sizeof own;
	if (s->udp || port < 1024) return false;
	return sys_getsockname(s->fd, &own, &size) == 0 && get_u16((u8 *)&own.sin6_port) == port;
}

static void dial_failed(struct stream *s, int error) {
	close_socket(s);
	s->dial->error = error;
}

/* Goes on with the next address: to a connection, a wait, or a refusal. */
static void dial_next(struct stream *s) {
	struct dial *d = s->dial;
	u32 port = get_u16(d->payload + 1);
	for (;;) {
		while (d->found_at < d->found_count) {
			const struct address *address = &d->found[d->found_at++];
			int result = connect_address(s->udp ? SOCK_DGRAM : SOCK_STREAM, address, port, &s->fd);
			if (result < 0 && result != -EINPROGRESS) {
				dial_failed(s, -result);
			} else if (result == 0 && met_itself(s, port)) {
				dial_failed(s, ECONNREFUSED);
			} else {
				static const int on = 1;
				if (!s->udp) sys_setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
				if (result == 0) return opened(s);
				s->state = CONNECTING;
				set_deadline(s, now + CONNECT_MS);
				if (watch_socket(s, EPOLLOUT)) return;
				dial_failed(s, ENOMEM);
			}
		}
		if (d->at == d->size) {
			refuse(s->number, d->error);
			return finish(s);
		}
		u32 kind = d->payload[d->at], length = d->payload[d->at + 1];
		const u8 *bytes = d->payload + d->at + 2;
		d->at += 2 + length;
		d->index = d->addresses++;
		d->found_at = d->found_count = 0;
		d->error = ENOENT;
		if (kind) {
			d->found[0].family = (u8)kind;
			memcpy(d->found[0].bytes, bytes, length);
			d->found_count = 1;
		} else if (!(d->found_count = (u8)hosts_lookup(bytes, length, d->found, MAX_FOUND))) {
			sys_getrandom(&d->id, sizeof d->id);
			d->answered = 0;
			s->fd = dns_send(bytes, length, d->id);
			if (s->fd < 0) continue;
			s->state = RESOLVING;
			set_deadline(s, now + DNS_MS);
			if (watch_socket(s, EPOLLIN)) return;
			dial_failed(s, ENOENT);
		}
	}
}

static void dns_ready(struct stream *s) {
	struct dial *d = s->dial;
	u8 answer[1500];
	long size = sys_read(s->fd, answer, sizeof answer);
	if (size == -EAGAIN) return;
	if (size < 0) {
		d->answered = 3; /* nobody is there to ask */
	} else {
		int which;
		u32 count = dns_parse(answer, (u32)size, d->id, &which, d->found + d->found_count, MAX_FOUND / 2);
		if (which < 0 || d->answered & 1 << which) return;
		d->answered |= (u8)(1 << which);
		d->found_count = (u8)(d->found_count + count);
		if (d->found_count) set_deadline(s, now + DNS_SECOND_ANSWER_MS);
	}
	if (d->answered != 3) return;
	close_socket(s);
	dial_next(s);
}

static void receive_datagrams(struct stream *s) {
	for (u32 sum = 0; sum < TURN && s->credit >= MAX_DATAGRAM && out_room() >= ROOM_FOR_STREAMS;) {
		long size = out_receive(s->fd, s->number, MAX_DATAGRAM, true);
		sum += 256; /* empty ones count too */
		if (size == -ECONNREFUSED) continue; /* the server was not there for an earlier one; it may be now */
		if (size < 0) break;
		s->credit -= (u32)size;
		sum += (u32)size;
		s->deadline = now + UDP_IDLE_MS;
	}
	refresh(s);
}

static void receive(struct stream *s) {
	long size = out_receive(s->fd, s->number, lesser(TURN, s->credit), false);
	if (size == -EAGAIN || size == -EINTR) return;
	if (size < 0) return reset(s, (int)-size);
	if (size > 0) {
		s->credit -= (u32)size;
		return refresh(s);
	}
	s->server_end = true;
	if (s->write_error) return reset(s, s->write_error);
	out_frame(END, 0, s->number, NULL, 0);
	if (still_open(s)) refresh(s);
}

static int socket_error(struct stream *s) {
	int error = 0, size = sizeof error;
	sys_getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &size);
	return error;
}

static void connection_ready(struct stream *s, u32 events) {
	if (events & EPOLLOUT && s->first && !write_kept(s)) return;
	if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return refresh(s);
	if (s->server_end) {
		if (events & (EPOLLHUP | EPOLLERR)) {
			int error = socket_error(s);
			reset(s, error ? error : ECONNRESET);
		}
	} else if (s->credit) {
		receive(s);
	} else if (events & (EPOLLHUP | EPOLLERR)) {
		int unread = 0;
		SYS(ioctl, s->fd, 0x541b /* FIONREAD */, &unread, 0, 0, 0);
		if (events & EPOLLERR && !unread) reset(s, socket_error(s)); /* takes no credit to tell */
		else park(s);
	}
}

void streams_ready(u64 key, u32 events) {
	struct stream *s = &streams[(u32)key];
	if (s->number != (u32)(key >> 32)) return; /* gone since epoll told of it */
	if (s->state == RESOLVING) {
		dns_ready(s);
	} else if (s->state == CONNECTING) {
		int error = socket_error(s);
		if (!error && met_itself(s, get_u16(s->dial->payload + 1))) error = ECONNREFUSED;
		if (!error) return opened(s);
		dial_failed(s, error);
		dial_next(s);
	} else if (s->udp) {
		if (events & EPOLLERR) socket_error(s); /* read, so that it does not wake us again */
		receive_datagrams(s);
	} else {
		connection_ready(s, events);
	}
}

static const char *on_open(const struct event *e) {
	if (find(e->stream)) return "stream is open";
	struct stream *s = add(e->stream);
	struct dial *d = s ? chunk_take() : NULL;
	if (!d) {
		if (s) finish(s);
		refuse(e->stream, s ? ENOBUFS : EMFILE);
		return NULL;
	}
	memset(d, 0, sizeof *d);
	memcpy(d->payload, e->bytes, e->size);
	d->size = e->size;
	d->at = 4;
	s->dial = d;
	s->udp = e->bytes[0] == TRANSPORT_UDP;
	dial_next(s);
	return NULL;
}

static void on_datagram(struct stream *s, const struct event *e) {
	u8 size[2];
	if (e->first) datagram_size = 0;
	memcpy(datagram + datagram_size, e->bytes, e->size);
	datagram_size += e->size;
	if (!e->last) return;
	if (s->state == CONNECTED) {
		s->deadline = now + UDP_IDLE_MS;
		send_datagram(s, datagram, datagram_size);
		return;
	}
	put_u16(size, datagram_size);
	s->kept += datagram_size + 64; /* empty ones count too */
	if (s->kept > WINDOW) return give_back(s, datagram_size);
	if (!keep(s, size, sizeof size) || !keep(s, datagram, datagram_size)) reset(s, ENOBUFS);
}

static const char *on_data(struct stream *s, const struct event *e) {
	if (s->host_end) return "data after eof";
	if (e->size > s->granted) return "credit";
	s->granted -= e->size;
	if (s->udp) {
		on_datagram(s, e);
		return NULL;
	}
	if (!e->size) return "frame length";
	if (s->write_error) return NULL;
	long sent = 0;
	if (s->state == CONNECTED && !s->first) {
		sent = sys_send(s->fd, e->bytes, e->size);
		if (sent < 0 && sent != -EAGAIN) {
			write_failed(s, (int)-sent);
			return NULL;
		}
		if (sent < 0) sent = 0;
		give_back(s, (u32)sent);
	}
	if (e->size == (u32)sent) return NULL;
	if (!keep(s, e->bytes + sent, e->size - (u32)sent)) reset(s, ENOBUFS);
	else if (s->state == CONNECTED) refresh(s);
	return NULL;
}

static const char *on_end(struct stream *s) {
	if (s->udp) {
		out_frame(END, 0, s->number, NULL, 0);
		return finish(s), NULL;
	}
	if (s->host_end) return "eof twice";
	s->host_end = true;
	if (s->state != CONNECTED || s->first) return NULL;
	if (!s->write_error && !s->server_end) sys_shutdown(s->fd, SHUT_WR); /* else closing does it */
	still_open(s);
	return NULL;
}

const char *streams_frame(const struct event *e) {
	if (e->type == OPEN) return on_open(e);
	struct stream *s = find(e->stream);
	if (!s) return NULL; /* it ended; the frames crossed */
	if (e->type == DATA) return on_data(s, e);
	if (e->type == END) return on_end(s);
	if (e->type == RESET) return cut(s), NULL;
	if (e->value > MAX_CREDIT - s->credit) return "credit";
	s->credit += e->value;
	if (s->state == CONNECTED) refresh(s);
	return NULL;
}

u64 streams_expire(u64 moment) {
	if (moment < next_look) return next_look;
	next_look = UINT64_MAX;
	for (u32 i = 0; i < high; i++) {
		struct stream *s = &streams[i];
		if (!s->number || !s->deadline) continue;
		if (moment < s->deadline) {
			if (s->deadline < next_look) next_look = s->deadline;
		} else if (s->state == CONNECTED) {
			out_frame(END, 0, s->number, NULL, 0);
			finish(s);
		} else {
			int error = s->state == CONNECTING ? ETIMEDOUT : ENOENT;
			dial_failed(s, error);
			dial_next(s);
		}
	}
	return next_look;
}

void streams_cut(void) {
	for (u32 i = 0; i < high; i++)
		if (streams[i].number) cut(&streams[i]);
}
