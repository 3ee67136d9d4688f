/* The bytes of a stream that has moved to its direct connection.
 *
 * They go from socket to socket through a pipe per direction; a pipe is filled only when it is empty, so that the amount
 * queued is known, and a stalled side holds up its source in the kernel. If the user's pipes exceed
 * /proc/sys/fs/pipe-user-pages-soft (which counts those outside the container too), a new one has two pages; then bytes
 * are copied, which is faster. */
#include "streams.h"

enum { PUMP_PIPE = 512 * 1024 }; /* all pipes together: the kernel's limit per user */
enum { PUMP_COPY = 256 * 1024 };
#ifndef PUMP_LEAST
#define PUMP_LEAST 65536 /* tests: more than a pipe ever holds */
#endif
enum fault { NONE, SOURCE, SINK };

static bool no_splice; /* forbidden or not implemented here: bytes are copied */

void splice_check(void) { no_splice = is_missing(sys_splice(-1, -1, 0)); }

bool open_pump(struct pump *p) {
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

/* A turn's worth of bytes: what waits in the pipe first, then what the source has. Without a pipe they are copied, and what
 * the sink does not take is left with the source. */
static enum fault pump(struct pump *p, int source, int sink, int *error) {
	static u8 bytes[PUMP_COPY];
	bool copies = p->from < 0;
	for (u32 sum = 0; sum < PUMP_TURN;) {
		if (copies || !p->held) {
			long got = -EAGAIN;
			if (!p->done) got = copies ? sys_peek(source, bytes, sizeof bytes) : sys_splice(source, p->to, PUMP_PIPE);
			p->done = p->done || got == 0;
			p->held = got < 0 ? 0 : (u32)got;
			if (p->done || got == -EAGAIN || got == -EINTR) return NONE;
			if (got < 0) return *error = (int)-got, SOURCE;
		}
		long put = copies ? sys_send(sink, bytes, p->held) : sys_splice(p->from, sink, p->held);
		if (put == -EAGAIN || put == -EINTR) return NONE;
		if (put <= 0) return *error = put ? (int)-put : EIO, SINK;
		if (copies) sys_discard(source, put);
		p->held -= (u32)put;
		sum += (u32)put;
	}
	return NONE;
}

void direct_refresh(struct stream *s) {
	struct direct *d = s->direct;
	bool blocked = s->first || d->up.held;
	u32 server = (!s->server_end && !d->down.held ? EPOLLIN : 0) | (blocked ? EPOLLOUT : 0);
	u32 host = (!d->up.done && !blocked ? EPOLLIN : 0) | (d->down.held ? EPOLLOUT : 0);
	/* A server that has ended and hangs up has reset, which must be reported. */
	if (!server && !s->server_end) park(s);
	else if (!watch_socket(s, server)) return reset(s, ENOMEM);
	if (!watch_direct(d, host)) reset(s, ENOMEM);
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
