/* The tables of streams and direct connections: shared state, epoll registration, writing the host's bytes to a server, and
 * how a stream ends. See streams.h. */
#include "streams.h"

struct stream streams[MAX_STREAMS];
struct direct slots[SLOTS];
u16 streams_high;
u64 streams_due = UINT64_MAX, directs_due = UINT64_MAX;
int epoll_fd;
static u16 chains[MAX_STREAMS], unused;
static u32 host_window;

void streams_start(u32 window) { host_window = window; }

struct stream *stream_find(u32 number) {
	u16 at = chains[number % MAX_STREAMS];
	while (at && streams[at - 1].number != number) at = streams[at - 1].next;
	return at ? &streams[at - 1] : NULL;
}

struct stream *stream_add(u32 number, struct path *path) {
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

bool watch(int fd, bool known, u32 mask, u64 key) {
	struct epoll_event event = {mask, key};
	return sys_epoll_ctl(epoll_fd, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event) == 0;
}

static void unwatch(int fd) { sys_epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL); }

bool watch_socket(struct stream *s, u32 mask) {
	if (s->in_epoll && s->mask == mask) return true;
	if (!watch(s->fd, s->in_epoll, mask, (u64)s->number << 32 | (u64)(s - streams))) return false;
	s->in_epoll = true;
	s->mask = mask;
	return true;
}

void park(struct stream *s) {
	if (s->in_epoll) unwatch(s->fd);
	s->in_epoll = false;
	s->mask = EPOLLHUP;
}

void set_deadline(struct stream *s, u64 when) {
	s->deadline = when;
	if (when < streams_due) streams_due = when;
}

int socket_error(struct stream *s) {
	int error = 0, size = sizeof error;
	sys_getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &size);
	return error;
}

void close_socket(struct stream *s) {
	if (s->fd >= 0) sys_close(s->fd); /* closing removes it from epoll */
	s->fd = -1;
	s->in_epoll = false;
}

static void drop_buffer(struct stream *s) {
	while (s->first) {
		struct piece *piece = s->first;
		s->first = piece->next;
		chunk_give(piece);
	}
}

static u64 key_of(const struct direct *d) { return DIRECT_KEY + 1 + (u64)(d - slots); }

/* Mask 0 removes it from epoll, which reports a hang-up with every mask. */
bool watch_direct(struct direct *d, u32 mask) {
	if (mask == d->mask) return true;
	if (!mask) unwatch(d->fd);
	else if (!watch(d->fd, d->mask != 0, mask, key_of(d))) return false;
	d->mask = mask;
	return true;
}

void set_limit(struct direct *d, u64 when) {
	d->deadline = when;
	if (when < directs_due) directs_due = when;
}

void close_pump(struct pump *p) {
	if (p->from < 0) return;
	sys_close(p->from);
	sys_close(p->to);
}

void release(struct direct *d) {
	if (d->fd >= 0) sys_close(d->fd); /* closing removes it from epoll */
	close_pump(&d->up);
	close_pump(&d->down);
	if (d->stream) d->stream->direct = NULL;
	d->state = UNUSED;
	d->mask = 0;
}

/* Lets a stream's direct connection end normally, without the stream. */
static void direct_leave(struct stream *s) {
	struct direct *d = s->direct;
	if (!d) return;
	s->direct = NULL;
	d->stream = NULL;
	d->state = LEAVING;
	set_limit(d, now + LEAVE_MS);
	/* Closing with unread bytes would be a reset, which overtakes what the host has not read yet. */
	sys_shutdown(d->fd, SHUT_WR);
	if (!watch_direct(d, EPOLLIN)) release(d);
}

void direct_drop(struct stream *s) {
	if (s->direct) release(s->direct);
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

/* From now on closing is a reset, even when the kernel does it. */
static void close_with_reset(int fd) {
	static const int linger[2] = {1, 0};
	sys_setsockopt(fd, SOL_SOCKET, SO_LINGER, linger, sizeof linger);
}

/* Closes with a reset: the server's data of this connection may be incomplete. */
void stream_cut(struct stream *s) {
	if (s->fd >= 0 && !s->udp) close_with_reset(s->fd);
	if (s->direct) close_with_reset(s->direct->fd);
	finish(s);
}

void reset(struct stream *s, int error) {
	out_value(s->path, RESET, s->number, (u32)(error == EPIPE ? ECONNRESET : error));
	direct_leave(s);
	stream_cut(s);
}

void streams_cut(const struct path *path) {
	for (u32 i = 0; i < streams_high; i++)
		if (streams[i].number && streams[i].path == path) stream_cut(&streams[i]);
}

/* The server has all of the host's bytes. */
static bool host_through(struct stream *s) {
	return s->host_end && !s->first && (!s->moved || (s->direct->up.done && !s->direct->up.held));
}

void pass_host_end(struct stream *s) {
	if (s->shut || s->write_error || s->server_end || !host_through(s)) return; /* at the server's end, closing does it */
	sys_shutdown(s->fd, SHUT_WR);
	s->shut = true;
}

/* Both directions are complete: false if the stream is gone. */
bool still_open(struct stream *s) {
	if (!s->server_end || !host_through(s)) return true;
	finish(s);
	return false;
}

void give_back(struct stream *s, u32 size) {
	s->owed += size;
	if (s->owed < WINDOW / 4 || s->host_end || s->moved) return;
	out_value(s->path, CREDIT, s->number, s->owed);
	s->granted += s->owed;
	s->owed = 0;
}

/* The server takes no more. Read its output to the end, then reset. */
bool write_failed(struct stream *s, int error) {
	drop_buffer(s);
	s->write_error = error;
	if (!s->server_end) return true;
	reset(s, error);
	return false;
}

/* Appends to the buffer; false if the pool is exhausted. */
bool keep(struct stream *s, const u8 *bytes, u32 size) {
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
void take_kept(struct stream *s, u8 *to, u32 size) {
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

/* Writes buffered bytes until the server takes no more; false if the stream is gone. */
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
