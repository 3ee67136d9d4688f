/* Streams: bytes both ways between the host and a server's connection, under credit. See streams.h.
 *
 * A hang-up is reported by epoll whatever one asked for. Where it comes while the host gives no credit, the socket leaves
 * epoll with its bytes unread and comes back with the next CREDIT. */
#include "streams.h"

enum { TURN = 32 * 1024, MAX_DATAGRAM = 65507, UDP_IDLE_MS = 60000 };

struct stream streams[MAX_STREAMS];
u16 streams_high;
static u16 chains[MAX_STREAMS], unused;
static int epoll;
static u32 host_window;
static u64 next_look = UINT64_MAX;

void streams_start(int epoll_fd, u32 window) {
	epoll = epoll_fd;
	host_window = window;
}

static struct stream *find(u32 number) {
	u16 at = chains[number % MAX_STREAMS];
	while (at && streams[at - 1].number != number) at = streams[at - 1].next;
	return at ? &streams[at - 1] : NULL;
}

static struct stream *add(u32 number, struct path *path) {
	u16 at = unused;
	if (at) unused = streams[at - 1].next;
	else if (streams_high < MAX_STREAMS) at = ++streams_high;
	else return NULL;
	struct stream *s = &streams[at - 1];
	u16 *chain = &chains[number % MAX_STREAMS];
	*s = (struct stream){.number = number, .path = path, .fd = -1, .credit = host_window, .granted = WINDOW, .next = *chain};
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

void close_socket(struct stream *s) {
	if (s->fd >= 0) sys_close(s->fd); /* leaves epoll with it */
	s->fd = -1;
	s->in_epoll = false;
}

void finish(struct stream *s) {
	direct_drop(s);
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

/* Whoever closes it, from now on. */
static void close_with_reset(int fd) {
	static const int linger[2] = {1, 0};
	sys_setsockopt(fd, SOL_SOCKET, SO_LINGER, linger, sizeof linger);
}

/* Closes so that the server sees a reset: what it has got of this connection may not be whole. */
static void cut(struct stream *s) {
	if (s->fd >= 0 && !s->udp) close_with_reset(s->fd);
	if (s->direct) close_with_reset(s->direct->fd);
	finish(s);
}

void reset(struct stream *s, int error) {
	out_value(s->path, RESET, s->number, (u32)(error == EPIPE ? ECONNRESET : error));
	direct_leave(s);
	cut(s);
}

void refuse(struct path *to, u32 number, int error) { out_value(to, REFUSED, number, (u32)error); }

void set_deadline(struct stream *s, u64 when) {
	s->deadline = when;
	if (when < next_look) next_look = when;
}

bool watch(int fd, bool known, u32 mask, u64 key) {
	struct epoll_event event = {mask, key};
	return sys_epoll_ctl(epoll, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event) == 0;
}

void unwatch(int fd) { sys_epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL); }

bool watch_socket(struct stream *s, u32 mask) {
	if (s->in_epoll && s->mask == mask) return true;
	if (!watch(s->fd, s->in_epoll, mask, (u64)s->number << 32 | (u64)(s - streams))) return false;
	s->in_epoll = true;
	s->mask = mask;
	return true;
}

/* Asks epoll for what this stream can do now. May end it: the last call of who makes it. */
static void refresh(struct stream *s) {
	if (s->moved) return direct_refresh(s);
	bool readable = s->udp ? s->credit >= MAX_DATAGRAM : s->credit && !s->server_end;
	u32 mask = (readable ? EPOLLIN : 0) | (s->first ? EPOLLOUT : 0);
	bool parked = !s->in_epoll && s->mask == EPOLLHUP;
	if (parked && !mask) return;
	if (!watch_socket(s, mask)) reset(s, ENOMEM);
}

void park(struct stream *s) {
	if (s->in_epoll) unwatch(s->fd);
	s->in_epoll = false;
	s->mask = EPOLLHUP;
}

/* The server has all that the host will ever say. */
static bool host_through(struct stream *s) {
	return s->host_end && !s->first && (!s->moved || direct_through(s->direct));
}

void pass_host_end(struct stream *s) {
	if (s->shut || s->write_error || s->server_end || !host_through(s)) return; /* at the server's end closing does it */
	sys_shutdown(s->fd, SHUT_WR);
	s->shut = true;
}

/* Both directions are through: false when the stream is gone. */
bool still_open(struct stream *s) {
	if (!s->server_end || !host_through(s)) return true;
	finish(s);
	return false;
}

static void give_back(struct stream *s, u32 size) {
	s->owed += size;
	if (s->owed < WINDOW / 4 || s->host_end || s->moved) return;
	out_value(s->path, CREDIT, s->number, s->owed);
	s->granted += s->owed;
	s->owed = 0;
}

/* The server takes no more. What it still has to say is read to its end; then comes the reset. */
bool write_failed(struct stream *s, int error) {
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
bool write_kept(struct stream *s) {
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
	pass_host_end(s);
	return still_open(s);
}

/* An earlier one's "port unreachable" is told instead of sending this one: hence twice. */
static void send_datagram(struct stream *s, const u8 *bytes, u32 size) {
	if (sys_send(s->fd, bytes, size) == -ECONNREFUSED) sys_send(s->fd, bytes, size);
	give_back(s, size);
}

/* What came while the name was looked up: each with its size before it. */
static void send_kept_datagrams(struct stream *s) {
	static u8 kept[MAX_PAYLOAD]; /* the path's may hold the beginning of another */
	while (s->first) {
		take_kept(s, kept, 2);
		u32 size = get_u16(kept);
		take_kept(s, kept, size);
		send_datagram(s, kept, size);
	}
}

void opened(struct stream *s) {
	out_frame(s->path, OPENED, 0, s->number, &s->dial->index, 1);
	chunk_give(s->dial);
	s->dial = NULL;
	s->state = CONNECTED;
	s->deadline = 0;
	if (s->udp) {
		set_deadline(s, now + UDP_IDLE_MS);
		send_kept_datagrams(s);
	}
	if (s->moved) direct_run(s, true, true);
	else if (s->udp || write_kept(s)) refresh(s);
}

static void receive_datagrams(struct stream *s) {
	for (u32 sum = 0; sum < TURN && s->credit >= MAX_DATAGRAM && out_room(s->path) >= ROOM_FOR_STREAMS;) {
		long size = out_receive(s->path, s->fd, s->number, MAX_DATAGRAM, true);
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
	long size = out_receive(s->path, s->fd, s->number, lesser(TURN, s->credit), false);
	if (size == -EAGAIN || size == -EINTR) return;
	if (size < 0) return reset(s, (int)-size);
	if (size > 0) {
		s->credit -= (u32)size;
		return refresh(s);
	}
	s->server_end = true;
	if (s->write_error) return reset(s, s->write_error);
	out_frame(s->path, END, 0, s->number, NULL, 0);
	if (still_open(s)) refresh(s);
}

int socket_error(struct stream *s) {
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
	if (s->state != CONNECTED) {
		dial_ready(s);
	} else if (s->udp) {
		if (events & EPOLLERR) socket_error(s); /* read, so that it does not wake us again */
		receive_datagrams(s);
	} else if (s->moved && !(s->server_end && events & (EPOLLHUP | EPOLLERR))) {
		direct_run(s, events & ~(u32)EPOLLIN, events & ~(u32)EPOLLOUT);
	} else {
		connection_ready(s, events);
	}
}

static const char *on_open(u32 number, const u8 *payload, u32 size, struct path *from) {
	if (find(number)) return "stream is open";
	struct stream *s = add(number, from);
	struct dial *d = s ? chunk_take() : NULL;
	if (!d) {
		if (s) finish(s);
		refuse(from, number, s ? ENOBUFS : EMFILE);
		return NULL;
	}
	memset(d, 0, sizeof *d);
	memcpy(d->payload, payload, size);
	d->size = size;
	d->at = 4;
	s->dial = d;
	s->udp = payload[0] == TRANSPORT_UDP;
	dial_next(s);
	return NULL;
}

static void on_datagram(struct stream *s, const struct event *e) {
	struct path *from = s->path;
	u8 size[2];
	if (e->first) from->datagram_size = 0;
	memcpy(from->datagram + from->datagram_size, e->bytes, e->size);
	from->datagram_size += e->size;
	if (!e->last) return;
	if (s->state == CONNECTED) {
		s->deadline = now + UDP_IDLE_MS;
		send_datagram(s, from->datagram, from->datagram_size);
		return;
	}
	put_u16(size, from->datagram_size);
	s->kept += from->datagram_size + 64; /* empty ones count too */
	if (s->kept > WINDOW) return give_back(s, from->datagram_size);
	if (!keep(s, size, sizeof size) || !keep(s, from->datagram, from->datagram_size)) reset(s, ENOBUFS);
}

static const char *on_data(struct stream *s, const struct event *e) {
	if (s->host_end) return "data after eof";
	if (s->moved) return "data after move";
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
		out_frame(s->path, END, 0, s->number, NULL, 0);
		return finish(s), NULL;
	}
	if (s->host_end) return "eof twice";
	s->host_end = true;
	if (s->state != CONNECTED) return NULL;
	pass_host_end(s);
	still_open(s);
	return NULL;
}

const char *streams_frame(const struct event *e, struct path *from) {
	switch (e->type) {
	case OPEN: return on_open(e->stream, e->bytes, e->size, from);
	case SIGNED_OPEN:
		if (!trunk_signed(e)) return "signature";
		return on_open(e->stream, e->bytes + TAG_SIZE, e->size - TAG_SIZE, from);
	case LISTEN: return direct_listen(e);
	case TRUNK: return trunk_expect(e->bytes, e->size);
	default: break;
	}
	struct stream *s = find(e->stream);
	if (e->type == DIRECT) return direct_expect(s, e->bytes);
	if (!s || s->path != from) return NULL; /* it ended; the frames crossed */
	switch (e->type) {
	case DATA: return on_data(s, e);
	case END: return on_end(s);
	case RESET: return cut(s), NULL;
	case MOVE: return direct_move(s);
	default: break;
	}
	if (s->moved) return NULL;
	if (e->value > MAX_CREDIT - s->credit) return "credit";
	s->credit += e->value;
	if (s->state == CONNECTED) refresh(s);
	return NULL;
}

u64 streams_expire(u64 moment) {
	if (moment < next_look) return next_look;
	next_look = UINT64_MAX;
	for (u32 i = 0; i < streams_high; i++) {
		struct stream *s = &streams[i];
		if (!s->number || !s->deadline) continue;
		if (moment < s->deadline) {
			if (s->deadline < next_look) next_look = s->deadline;
		} else if (s->state == CONNECTED) {
			out_frame(s->path, END, 0, s->number, NULL, 0);
			finish(s);
		} else {
			dial_late(s);
		}
	}
	return next_look;
}

void streams_cut(const struct path *path) {
	for (u32 i = 0; i < streams_high; i++)
		if (streams[i].number && streams[i].path == path) cut(&streams[i]);
}
