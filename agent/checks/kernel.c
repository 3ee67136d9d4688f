/* The system calls of the simulation. See simulation.h. */
#include "simulation.h"

#include <linux/netlink.h>
#include <string.h>

struct simulation *k;

u8 byte_of(u32 who, enum way way, u32 at) { return (u8)(who * 31 + way * 101 + at * 7 + (at >> 8) * 13); }

bool fails(enum fault_class class) {
	if (!k->faults[class]) return false;
	k->faults[class]--;
	return true;
}

struct file *file_of(long fd, enum kind kind) {
	if (fd < 0 || (u32)fd >= k->top || k->files[fd].kind == UNUSED_FILE) broken("a descriptor that is not open", fd, kind);
	struct file *f = &k->files[fd];
	if (kind != UNUSED_FILE && f->kind != kind) broken("a descriptor of another kind", fd, f->kind);
	return f;
}

int open_file(enum kind kind) {
	for (int fd = 0; fd < DESCRIPTORS; fd++) {
		struct file *f = &k->files[fd];
		if ((u32)fd < k->top && f->kind != UNUSED_FILE) continue;
		memset(f, 0, offsetof(struct file, small));
		f->kind = (u8)kind;
		f->literal = (struct bytes){0, 0, kind == STDIN ? LITERAL : SMALL, kind == STDIN ? k->large[0] : f->small};
		f->who = NOBODY;
		f->room = UINT32_MAX;
		if (k->top <= (u32)fd) k->top = (u32)fd + 1;
		return fd;
	}
	return -EMFILE;
}

bool put_literal(struct file *f, const u8 *bytes, u32 size) {
	struct bytes *l = &f->literal;
	memmove(l->of, l->of + l->at, l->size -= l->at);
	l->at = 0;
	if (size > l->capacity - l->size) return false;
	memcpy(l->of + l->size, bytes, size);
	l->size += size;
	return true;
}

void abort_connection(struct file *f, int error) {
	f->error = error;
	f->ended = f->shut = f->broke = true;
	f->connecting = false;
	f->room = UINT32_MAX;
}

static u32 unread(const struct file *f) {
	u32 literal = f->literal.size - f->literal.at;
	if (f->kind == STDIN) literal = lesser(literal, h->stdin_gate);
	return literal + (f->end - f->at);
}

static int take_error(struct file *f) {
	int error = f->error;
	f->error = 0;
	return error;
}

u32 readiness(const struct file *f) {
	u32 is = 0;
	switch (f->kind) {
	case STDIN: return (unread(f) ? EPOLLIN : 0) | (f->ended && !unread(f) ? EPOLLIN | EPOLLHUP | EPOLLRDHUP : 0);
	case STDOUT: return (f->room ? EPOLLOUT : 0) | (f->error ? EPOLLERR : 0);
	case LISTENER: return k->backlog_count ? EPOLLIN : 0;
	case DNS: return (f->literal.size > f->literal.at || f->error ? EPOLLIN : 0) | (f->error ? EPOLLERR : 0) | EPOLLOUT;
	case SOCKET:
		if (f->connecting) return 0;
		if (f->udp) return (f->datagram_count || f->error ? EPOLLIN : 0) | (f->error ? EPOLLERR : 0) | EPOLLOUT;
		if (unread(f) || f->ended) is |= EPOLLIN;
		if (f->ended) is |= EPOLLRDHUP;
		if (f->room || f->shut) is |= EPOLLOUT;
		if (f->ended && f->shut) is |= EPOLLHUP;
		if (f->error) is |= EPOLLERR | EPOLLIN | EPOLLOUT;
		return is;
	default: return 0;
	}
}

static u32 limited(u64 size) { return k->crumb && size > k->crumb ? k->crumb : (u32)size; }

/* `to` NULL: only counted. Returns as read(2). */
static long receive(struct file *f, u8 *to, u32 size, bool peek) {
	if (f->kind == SOCKET && f->udp) {
		if (f->error) return f->error = 0, -ECONNREFUSED;
		if (!f->datagram_count) return -EAGAIN;
		u32 has = lesser(f->datagrams[0], size);
		memmove(f->datagrams, f->datagrams + 1, sizeof f->datagrams - sizeof *f->datagrams);
		f->datagram_count--;
		k->progress++;
		return has;
	}
	u32 has = limited(lesser(unread(f), size)), at = f->at, literal_at = f->literal.at;
	if (!has && size) {
		if (f->error && f->kind != STDIN) return -take_error(f);
		return f->ended ? 0 : -EAGAIN;
	}
	u32 literal = lesser(has, f->literal.size - literal_at);
	for (u32 i = 0; to && i < has; i++)
		to[i] = i < literal ? f->literal.of[literal_at + i] : byte_of(f->who, f->way, at + i - literal);
	if (peek) return has;
	f->literal.at += literal;
	f->at += has - literal;
	if (f->kind == STDIN) h->stdin_gate -= h->stdin_gate == UINT32_MAX ? 0 : literal, k->heard_ms = k->clock_ms;
	k->progress++;
	return has;
}

/* What goes out of the agent at `fd`. */
static long transmit(struct file *f, const u8 *bytes, u32 size) {
	if (f->kind == STDOUT) {
		if (f->error) return -EPIPE;
	} else if (f->shut) {
		return f->error ? -take_error(f) : -EPIPE;
	}
	if (f->connecting) return -EAGAIN;
	if (f->udp) {
		if (f->error) return f->error = 0, -ECONNREFUSED;
		k->progress++;
		return size;
	}
	u32 takes = limited(lesser(size, f->room));
	if (!takes && size) return -EAGAIN;
	if (f->room != UINT32_MAX) f->room -= takes;
	k->progress++;
	if (f->kind == STDOUT) host_read(0, bytes, takes);
	else if (f->trunk || f->direct || f->kind == SOCKET) host_takes(f, bytes, takes);
	return takes;
}

static long vectors(long fd, const struct iovec *parts, long count, bool write) {
	struct file *f = file_of(fd, UNUSED_FILE);
	long sum = 0;
	if (fails(write ? AT_WRITE : AT_READ)) return f->kind <= STDOUT ? -EINTR : -EAGAIN;
	if (f->udp && !write) { /* one datagram for all parts; its bytes are not looked at */
		u32 size = 0;
		for (long i = 0; i < count; i++) size += (u32)parts[i].iov_len;
		long got = receive(f, NULL, size, false);
		for (long i = 0, left = got; i < count && left > 0; left -= (long)parts[i++].iov_len)
			memset(parts[i].iov_base, 'd', lesser((u32)left, (u32)parts[i].iov_len));
		return got;
	}
	for (long i = 0; i < count; i++) {
		u8 *at = parts[i].iov_base;
		u32 size = (u32)parts[i].iov_len;
		if (!size) continue;
		long got = write ? transmit(f, at, size) : receive(f, at, size, false);
		if (got < 0) return sum ? sum : got;
		sum += got;
		if ((u32)got < size) break;
	}
	return sum;
}

/* -- sockets -------------------------------------------------------------------------------------- */

enum { PORT_ANSWERS = 3000, PORT_REFUSES, PORT_WAITS, PORT_UNREACHABLE, PORT_MEETS_ITSELF, PORT_STALLS };

static long connect_to(struct file *f, const u8 *address) {
	u32 port = get_u16(address + 2);
	bool v4 = address[0] == AF_INET;
	if (port == 53) return f->kind = DNS, 0;
	if (f->connected) return -EISCONN;
	if (f->connecting) {
		if (port == PORT_WAITS) return -EALREADY;
		f->connecting = false;
		if (port == PORT_REFUSES) return -ECONNREFUSED;
		return f->connected = true, -EISCONN;
	}
	f->who = v4 ? address[7] : address[8 + 15];
	if (f->who >= STREAMS) f->who = NOBODY;
	if (port == PORT_UNREACHABLE) return -ENETUNREACH;
	if (f->udp) return f->connected = true, 0;
	f->met_itself = port == PORT_MEETS_ITSELF;
	if (port == PORT_STALLS) f->room = 5000;
	f->way = TO_HOST;
	f->connecting = true;
	return -EINPROGRESS;
}

static long accept_from(void) {
	if (fails(AT_ACCEPT)) return -EMFILE;
	if (!k->backlog_count) return -EAGAIN;
	int fd = open_file(SOCKET);
	if (fd < 0) return fd;
	struct file *f = &k->files[fd];
	u8 with = k->backlog[0], greeting[64];
	u32 index = NOBODY;
	bool as_trunk = false;
	memmove(k->backlog, k->backlog + 1, sizeof k->backlog - 1);
	k->backlog_count--;
	put_literal(f, greeting, greeting_of(with, greeting, &index, &as_trunk, &f->entry));
	memcpy(f->secret, h->secret, SECRET_SIZE);
	f->connected = f->direct = true;
	f->who = (u8)index;
	f->way = TO_SERVER;
	f->trunk = as_trunk;
	k->progress++;
	return fd;
}

static long splice(long from, long to, u32 size) {
	if (from == -1) return -EBADF;
	struct file *source = file_of(from, UNUSED_FILE), *sink = file_of(to, UNUSED_FILE);
	if (fails(AT_SPLICE)) return -EAGAIN;
	if (sink->kind == PIPE) { /* into the pipe, which is empty */
		struct file *pipe = sink - 1;
		if (pipe->held) broken("a pipe is filled that is not empty", from, to);
		u32 has = limited(lesser(unread(source), lesser(size, pipe->room)));
		if (!has) {
			u8 none;
			return receive(source, &none, 1, false);
		}
		if (source->literal.size > source->literal.at) broken("a greeting is passed on", from, to);
		pipe->who = source->who;
		pipe->way = source->way;
		pipe->at = source->at;
		pipe->held = has;
		source->at += has;
		k->progress++;
		return has;
	}
	u8 bytes[4096];
	u32 has = lesser(lesser(size, source->held), sizeof bytes);
	for (u32 i = 0; i < has; i++) bytes[i] = byte_of(source->who, source->way, source->at + i);
	long put = transmit(sink, bytes, has);
	if (put > 0) source->at += (u32)put, source->held -= (u32)put;
	return put;
}

static long close_file(long fd) {
	struct file *f = file_of(fd, UNUSED_FILE);
	if (fd < 2) broken("stdin or stdout is closed", fd, 0);
	if (f->kind == LISTENER) k->backlog_count = 0;
	if (f->kind == SOCKET && f->trunk && fd == h->trunk_fd) {
		if (h->paths[1].is_there && h->paths[1].valid && h->paths[0].valid && !f->broke && !k->faulty)
			broken("a trunk is given up on which all was right", fd, 0);
		host_lost_trunk();
	}
	for (u32 i = 0; i < h->count; i++)
		if (h->streams[i].direct == fd) h->streams[i].direct = -1;
	if (f->kind == SOCKET && !f->direct && f->connected && f->who < h->count) h->streams[f->who].offered = f->end;
	f->kind = UNUSED_FILE;
	return 0;
}

/* -- waiting -------------------------------------------------------------------------------------- */

enum { SPIN_LIMIT = 600 };

static void no_spinning(void) {
	static u64 before;
	if (before != k->progress + k->clock_ms) k->calls_without_progress = 0;
	before = k->progress + k->clock_ms;
	if (++k->calls_without_progress > SPIN_LIMIT) broken("waits again and again although nothing happens", (long)k->clock_ms, 0);
}

static long look(struct epoll_event *events, long most) {
	long count = 0;
	for (u32 fd = 0; fd < k->top && count < most; fd++) {
		const struct file *f = &k->files[fd];
		if (f->kind == UNUSED_FILE || !f->registered) continue;
		u32 is = readiness(f) & (f->mask | EPOLLERR | EPOLLHUP);
		if (is) events[count++] = (struct epoll_event){is, f->key};
	}
	return count;
}

static long look_at(struct pollfd *polls, long count) {
	long ready = 0;
	for (long i = 0; i < count; i++) {
		polls[i].revents = 0;
		if (polls[i].fd < 0) continue;
		u32 is = readiness(file_of(polls[i].fd, UNUSED_FILE));
		polls[i].revents = (short)(is & ((u32)(unsigned short)polls[i].events | EPOLLERR | EPOLLHUP));
		ready += polls[i].revents != 0;
	}
	return ready;
}

static long wait_for(struct epoll_event *events, long most, struct pollfd *polls, long poll_count, long timeout_ms) {
	u64 until = k->clock_ms + (u64)timeout_ms;
	no_spinning();
	if (!events && poll_count == 1) { /* the farewell */
		long ready = look_at(polls, 1);
		if (!ready) k->clock_ms = until;
		return ready;
	}
	script_look();
	for (;;) {
		long ready = events ? look(events, most) : look_at(polls, poll_count);
		if (ready || k->clock_ms >= until) return ready;
		script_goes_on(until);
	}
}

static long epoll_ctl(long what, long fd, const struct epoll_event *event) {
	struct file *f = file_of(fd, UNUSED_FILE);
	bool adds = what == EPOLL_CTL_ADD;
	if (f->kind == TEXT_FILE || f->kind == FOLDER) return -EPERM;
	if (adds == f->registered) broken("epoll: added twice, or not there", fd, what);
	if (adds && fd > 1 && fails(AT_EPOLL)) return -ENOMEM;
	f->registered = what != EPOLL_CTL_DEL;
	if (event) f->mask = event->events, f->key = event->data;
	return 0;
}

static long make_pipe(int *ends) {
	if (fails(AT_PIPE)) return -EMFILE;
	int from = open_file(PIPE), to = from < 0 ? from : open_file(PIPE);
	if (to < 0) return close_file(from), to;
	if (to != from + 1) { /* its state is that of the descriptor before the one that is written to */
		close_file(from), close_file(to);
		return -EMFILE;
	}
	k->files[from].room = 8192;
	ends[0] = from, ends[1] = to;
	return 0;
}

static long control(long fd, long what, long value) {
	struct file *f = file_of(fd, UNUSED_FILE);
	if (what == F_SETPIPE_SZ && f->kind == PIPE && !fails(AT_PIPE_SIZE)) return (long)((f - 1)->room = (u32)value);
	if (what == F_SETPIPE_SZ) return -EPERM;
	return what == F_GETPIPE_SZ ? 8192 : 0;
}

static long new_socket(long family, long type, long protocol) {
	if (fails(family == AF_NETLINK ? AT_NETLINK : AT_SOCKET)) return -EMFILE;
	int fd = open_file(family == AF_NETLINK ? NETLINK : SOCKET);
	if (fd >= 0) k->files[fd].udp = (type & 15) == SOCK_DGRAM && family != AF_NETLINK && protocol == 0;
	return fd;
}

static long send_to(long fd, const u8 *bytes, u32 size) {
	struct file *f = file_of(fd, UNUSED_FILE);
	if (f->kind == NETLINK) {
		const struct nlmsghdr *ask = (const struct nlmsghdr *)bytes;
		f->questions[0] = ask->nlmsg_type;
		f->questions[1] = bytes[sizeof *ask] == AF_INET ? 4 : 6;
		f->entry = 0;
		return k->answers == 5 ? -ENOENT : (long)size;
	}
	if (f->kind == DNS) {
		if (f->question_count < 2) f->questions[f->question_count++] = (u16)get_u16(bytes);
		k->progress++;
		return size;
	}
	if (fails(AT_WRITE)) return -EAGAIN;
	return transmit(f, bytes, size);
}

static long read_from(long fd, u8 *to, u32 size) {
	struct file *f = file_of(fd, UNUSED_FILE);
	switch (f->kind) {
	case TEXT_FILE: return text_of(f, to, size);
	case NETLINK: return netlink_answer(f, to, size);
	default: return vectors(fd, &(struct iovec){to, size}, 1, false);
	}
}

static long name_of(long fd, u8 *to) {
	struct file *f = file_of(fd, UNUSED_FILE);
	put_u16(to + 2, f->kind == LISTENER ? 4444 : f->met_itself ? PORT_MEETS_ITSELF : 50000);
	return 0;
}

static long hear(const char *words, u32 size) {
	u32 takes = lesser(size, (u32)sizeof k->words - 1 - k->words_size);
	memcpy(k->words + k->words_size, words, takes);
	k->words_size += takes;
	return size;
}

static bool looks_at_processes(long number, long a) {
	switch (number) {
	case __NR_openat:
	case __NR_close:
	case __NR_getdents64:
	case __NR_newfstatat:
	case __NR_readlinkat:
	case __NR_setfsuid:
	case __NR_setfsgid:
	case __NR_prctl: return true;
	case __NR_read: return file_of(a, UNUSED_FILE)->kind == TEXT_FILE;
	default: return false;
	}
}

long sys6(long number, long a, long b, long c, long d, long e, long f) {
	(void)e, (void)f;
	/* As another user it looks at processes, and does nothing else. */
	if ((k->user || k->group) && !looks_at_processes(number, a)) broken("a system call as another user", number, k->user);
	switch (number) {
	case __NR_read: return read_from(a, (u8 *)b, (u32)c);
	case __NR_write: return a == 2 ? hear((const char *)b, (u32)c) : transmit(file_of(a, UNUSED_FILE), (const u8 *)b, (u32)c);
	case __NR_readv: return vectors(a, (const struct iovec *)b, c, false);
	case __NR_writev: return vectors(a, (const struct iovec *)b, c, true);
	case __NR_openat: return open_path(a, (const char *)b);
	case __NR_close: return close_file(a);
	case __NR_fstat: ((struct stat *)b)->st_ino = 4242; return 0;
	case __NR_fcntl: return control(a, b, c);
	case __NR_getdents64: return list(file_of(a, FOLDER), (u8 *)b, (u32)c);
	case __NR_readlinkat: return link_of(a == AT_FDCWD ? NULL : file_of(a, FOLDER), (const char *)b, (u8 *)c, (u32)d);
	case __NR_newfstatat: return owner_of(file_of(a, FOLDER), (const char *)b, (struct stat *)c);
	case __NR_geteuid:
	case __NR_getegid: return 0;
	case __NR_setfsuid: return k->user = (u32)a, k->dumpable = true, 0;
	case __NR_setfsgid: return k->group = (u32)a, k->dumpable = true, 0;
	case __NR_socket: return new_socket(a, b, c);
	case __NR_connect: return connect_to(file_of(a, UNUSED_FILE), (const u8 *)b);
	case __NR_sendto: return send_to(a, (const u8 *)b, (u32)c);
	case __NR_recvfrom: return receive(file_of(a, SOCKET), (u8 *)b, (u32)c, d == 2);
	case __NR_shutdown: file_of(a, SOCKET)->shut = true; return 0;
	case __NR_getsockname: return name_of(a, (u8 *)b);
	case __NR_setsockopt: return file_of(a, UNUSED_FILE), 0;
	case __NR_getsockopt: *(int *)d = take_error(file_of(a, UNUSED_FILE)); return 0;
	case __NR_bind: return fails(AT_LISTEN) ? -EADDRNOTAVAIL : 0;
	case __NR_listen: file_of(a, SOCKET)->kind = LISTENER; return 0;
	case __NR_accept4: return file_of(a, LISTENER), accept_from();
	case __NR_pipe2: return make_pipe((int *)a);
	case __NR_splice: return splice(a, c, (u32)e);
	case __NR_epoll_create1: return open_file(EPOLL);
	case __NR_epoll_ctl: return epoll_ctl(b, c, (const struct epoll_event *)d);
	case __NR_epoll_pwait: return wait_for((struct epoll_event *)b, c, NULL, 0, d);
	case __NR_ppoll: {
		const struct __kernel_timespec *t = (const struct __kernel_timespec *)c;
		return wait_for(NULL, 0, (struct pollfd *)a, b, t->tv_sec * 1000 + (t->tv_nsec + 999999) / 1000000);
	}
	case __NR_getrandom: memset((void *)a, (int)(k->progress & 0xff), (size_t)b); return b;
	case __NR_clock_gettime: {
		struct __kernel_timespec *t = (struct __kernel_timespec *)b;
		t->tv_sec = (long long)(k->clock_ms / 1000), t->tv_nsec = (long long)(k->clock_ms % 1000) * 1000000;
		return 0;
	}
	case __NR_ioctl: *(int *)c = (int)unread(file_of(a, UNUSED_FILE)); return 0;
	case __NR_prctl: k->dumpable &= a != PR_SET_DUMPABLE; return 0;
	case __NR_rt_sigaction:
	case __NR_prlimit64: return 0;
	default: broken("a system call that the simulation does not know", number, a);
	}
}

/* The pool's pieces, counted, and refused when the script asks for that. */
void *__real_chunk_take(void);
void __real_chunk_give(void *chunk);
void *__wrap_chunk_take(void);
void __wrap_chunk_give(void *chunk);

void *__wrap_chunk_take(void) {
	void *chunk = fails(AT_CHUNK) ? NULL : __real_chunk_take();
	k->chunks += chunk != NULL;
	/* A window of each stream, and what it is dialled with; of more streams than we know when the host is wrong. */
	if (k->chunks > (h->count + (h->paths[0].valid ? 1 : 2)) * (WINDOW / (CHUNK - 16) + 3)) broken("more is kept than windows", k->chunks, h->count);
	return chunk;
}

void __wrap_chunk_give(void *chunk) {
	k->chunks -= chunk != NULL;
	__real_chunk_give(chunk);
}
