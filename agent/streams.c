/* Streams: bytes both ways between the host and a server's connection, under credit. See streams.h.
 *
 * epoll reports a hang-up with every mask. If it comes while the host gives no credit, the socket leaves epoll with unread
 * bytes and returns with the next CREDIT. */
#include "streams.h"

enum { TURN = 60 * 1024, MAX_DATAGRAM = 65507, UDP_IDLE_MS = 60000 };

/* Asks epoll for what this stream can do now. May end it: the caller must not use it afterwards. */
static void refresh(struct stream *s) {
	if (s->moved) return direct_refresh(s);
	bool readable = s->udp ? s->credit >= MAX_DATAGRAM : s->credit && !s->server_end;
	u32 mask = (readable ? EPOLLIN : 0) | (s->first ? EPOLLOUT : 0);
	bool parked = !s->in_epoll && s->mask == EPOLLHUP;
	if (parked && !mask) return;
	if (!watch_socket(s, mask)) reset(s, ENOMEM);
}

/* The call may report "port unreachable" for an earlier datagram instead of sending this one: then send again. */
static void send_datagram(struct stream *s, const u8 *bytes, u32 size) {
	if (sys_send(s->fd, bytes, size) == -ECONNREFUSED) sys_send(s->fd, bytes, size);
	give_back(s, size);
}

/* Datagrams that came while the name was resolved, each preceded by its size. */
static void send_kept_datagrams(struct stream *s) {
	static u8 kept[MAX_PAYLOAD]; /* the path's may hold the start of another */
	while (s->first) {
		take_kept(s, kept, 2);
		u32 size = get_u16(kept);
		take_kept(s, kept, size);
		send_datagram(s, kept, size);
	}
}

static void opened(struct stream *s) {
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

static void dialled(struct stream *s, enum dial_outcome outcome) {
	if (outcome == DIAL_WAITS) return;
	if (outcome == DIAL_OPEN) return opened(s);
	out_value(s->path, REFUSED, s->number, (u32)s->dial->error);
	finish(s);
}

static void receive_datagrams(struct stream *s) {
	for (u32 sum = 0; sum < TURN && s->credit >= MAX_DATAGRAM && out_room(s->path) >= ROOM_FOR_STREAMS;) {
		long size = out_receive(s->path, s->fd, s->number, MAX_DATAGRAM, true);
		sum += 256; /* empty ones count too */
		if (size == -ECONNREFUSED) continue; /* an earlier datagram found no server; this one may */
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
		dialled(s, dial_ready(s));
	} else if (s->udp) {
		if (events & EPOLLERR) socket_error(s); /* read it, so that it does not wake the loop again */
		receive_datagrams(s);
	} else if (s->moved && !(s->server_end && events & (EPOLLHUP | EPOLLERR))) {
		direct_run(s, events & ~(u32)EPOLLIN, events & ~(u32)EPOLLOUT);
	} else {
		connection_ready(s, events);
	}
}

const char *stream_open(u32 number, const u8 *payload, u32 size, struct path *from) {
	if (stream_find(number)) return "stream is open";
	struct stream *s = stream_add(number, from);
	struct dial *d = s ? chunk_take() : NULL;
	if (!d) {
		if (s) finish(s);
		out_value(from, REFUSED, number, s ? ENOBUFS : EMFILE);
		return NULL;
	}
	memset(d, 0, sizeof *d);
	memcpy(d->payload, payload, size);
	d->size = size;
	d->at = 4;
	s->dial = d;
	s->udp = payload[0] == TRANSPORT_UDP;
	dialled(s, dial_next(s));
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

const char *stream_data(struct stream *s, const struct event *e) {
	if (s->host_end) return "data after eof";
	if (s->moved) return "data after move";
	if (e->size > s->granted) return "credit";
	s->granted -= e->size;
	if (s->udp) return on_datagram(s, e), NULL;
	if (!e->size) return "frame length";
	if (s->write_error) return NULL;
	long sent = 0;
	if (s->state == CONNECTED && !s->first) {
		sent = sys_send(s->fd, e->bytes, e->size);
		if (sent < 0 && sent != -EAGAIN) return write_failed(s, (int)-sent), NULL;
		if (sent < 0) sent = 0;
		give_back(s, (u32)sent);
	}
	if (e->size == (u32)sent) return NULL;
	if (!keep(s, e->bytes + sent, e->size - (u32)sent)) reset(s, ENOBUFS);
	else if (s->state == CONNECTED) refresh(s);
	return NULL;
}

const char *stream_end(struct stream *s) {
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

const char *stream_credit(struct stream *s, u32 size) {
	if (s->moved) return NULL;
	if (size > MAX_CREDIT - s->credit) return "credit";
	s->credit += size;
	if (s->state == CONNECTED) refresh(s);
	return NULL;
}

u64 streams_expire(u64 moment) {
	if (moment < streams_due) return streams_due;
	streams_due = UINT64_MAX;
	for (u32 i = 0; i < streams_high; i++) {
		struct stream *s = &streams[i];
		if (!s->number || !s->deadline) continue;
		if (moment < s->deadline) {
			if (s->deadline < streams_due) streams_due = s->deadline;
		} else if (s->state == CONNECTED) {
			out_frame(s->path, END, 0, s->number, NULL, 0);
			finish(s);
		} else {
			dialled(s, dial_late(s));
		}
	}
	return streams_due;
}
