/* The agent: one exec carries every connection into a container. SPEC.md, "Agent protocol", specifies stdin and stdout.
 *
 * It never forks, writes no file, and exits when the host does: at EOF on stdin, or after 15 s of silence. */
#include "agent.h"

enum { EVENTS = 64, STDIN_KEY = 0, STDOUT_KEY = 1, SILENCE_MS = 15000, FAREWELL_MS = 40 };
enum { PIPE_SIZE = 1 << 20 }; /* what any user may ask for */
enum bye_reason { BYE_STDIN = 1, BYE_SILENCE = 2, BYE_PROTOCOL = 3 };
enum exit_status { EXIT_FINE = 0, EXIT_USAGE = 2, EXIT_PROTOCOL = 3, EXIT_SILENCE = 4 };

static u64 last_heard;
static u32 silence_ms = SILENCE_MS;
static long old_flags[2];

static void say(const char *what, const char *detail) {
	static const char before[] = "agent: ";
	sys_write(2, before, sizeof before - 1);
	sys_write(2, what, text_size(what));
	sys_write(2, detail, text_size(detail));
	sys_write(2, "\n", 1);
}

_Noreturn static void leave(int status) {
	streams_cut(&exec_path);
	streams_cut(&trunk_path);
	sys_fcntl(0, F_SETFL, old_flags[0]);
	sys_fcntl(1, F_SETFL, old_flags[1]);
	sys_exit(status);
}

/* Sends BYE, as far as stdout takes it within a moment. */
_Noreturn static void end(enum bye_reason reason, int status, const char *what, const char *detail) {
	u8 payload[128];
	u32 size = 0;
	payload[size++] = (u8)reason;
	for (const char *part = what; part; part = part == what ? detail : NULL)
		for (u32 i = 0; part[i] && size < sizeof payload; i++) payload[size++] = (u8)part[i];
	bool greeted = exec_path.decoder.greeted;
	if (greeted && out_room(&exec_path) > sizeof payload + HEADER_SIZE) out_frame(&exec_path, BYE, 0, 0, payload, size);
	for (u64 until = now_ms() + FAREWELL_MS; greeted && out_flush(&exec_path) == 0 && out_pending(&exec_path);) {
		struct pollfd stdout_poll = {1, POLLOUT, 0};
		u64 moment = now_ms();
		if (moment >= until) break;
		struct __kernel_timespec left = {0, (long long)(until - moment) * 1000000};
		sys_ppoll(&stdout_poll, 1, &left);
	}
	if (status) say(what, detail);
	leave(status);
}

static void read_stdin(void) {
	const char *error;
	long size = path_read(&exec_path, &error);
	if (size == -EAGAIN || size == -EINTR) return;
	if (size <= 0) end(BYE_STDIN, EXIT_FINE, "stdin ended", "");
	last_heard = now;
	if (error) end(BYE_PROTOCOL, exec_path.decoder.greeted ? EXIT_PROTOCOL : EXIT_USAGE, "not our protocol: ", error);
}

static void watch_pipe(int fd, u64 key, u32 events) {
	static bool known[2];
	struct epoll_event event = {events, key};
	if (sys_epoll_ctl(epoll_fd, known[fd] ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event) < 0) {
		say("stdin and stdout have to be pipes or sockets", "");
		leave(EXIT_USAGE);
	}
	known[fd] = true;
}

/* Both paths need room for a server's data: which one it is for is known late. */
static bool is_room(void) {
	return out_room(&exec_path) >= ROOM_FOR_STREAMS && (trunk_path.out < 0 || out_room(&trunk_path) >= ROOM_FOR_STREAMS);
}

/* A path is full: wait for it, and for the host's frames as far as there is room for the answers. */
static void wait_for_room(int timeout_ms) {
	bool room = out_room(&exec_path) >= ROOM_FOR_INPUT, trunk_room = out_room(&trunk_path) >= ROOM_FOR_INPUT;
	short out = out_pending(&exec_path) ? POLLOUT : 0, trunk_out = out_pending(&trunk_path) ? POLLOUT : 0;
	struct pollfd polls[3] = {
		{0, (short)(POLLRDHUP | (room ? POLLIN : 0)), 0},
		{1, out, 0},
		{trunk_path.in, (short)((trunk_room ? POLLIN : 0) | trunk_out), 0}, /* poll ignores -1 */
	};
	struct __kernel_timespec timeout = {timeout_ms / 1000, timeout_ms % 1000 * 1000000LL};
	if (sys_ppoll(polls, 3, &timeout) <= 0) return;
	now = now_ms();
	if (room && polls[0].revents) read_stdin();
	else if (polls[0].revents & (POLLHUP | POLLRDHUP | POLLERR)) end(BYE_STDIN, EXIT_FINE, "stdin ended", "");
	if (polls[1].revents & (POLLHUP | POLLERR)) leave(EXIT_FINE);
	if (trunk_room && polls[2].revents & ~POLLOUT) trunk_ready(polls[2].revents);
	else if (polls[2].revents & (POLLHUP | POLLERR)) trunk_end(); /* its last frames stay unread: there is no room for answers */
}

static void flush(void) {
	if (out_flush(&exec_path) < 0) leave(EXIT_FINE); /* the reader is gone */
	trunk_flush();
}

static void serve(void) {
	static struct epoll_event events[EVENTS];
	long count = 0, at = 0;
	bool want_out = false;
	for (;;) {
		flush();
		now = now_ms();
		/* After a pause of the container, the host's frames are there but unread. */
		if (now - last_heard >= silence_ms && out_room(&exec_path) >= ROOM_FOR_INPUT) read_stdin();
		if (now - last_heard >= silence_ms) end(BYE_SILENCE, EXIT_SILENCE, "no word from the host", "");
		u64 wake = last_heard + silence_ms, next;
		bool full = !is_room();
		if (!full && (next = streams_expire(now)) < wake) wake = next;
		if (!full && (next = direct_expire(now)) < wake) wake = next;
		if (!full && (next = watch_turn()) < wake) wake = next;
		flush();
		int timeout_ms = wake > now ? (int)(wake - now) : 0;
		if (!is_room()) {
			wait_for_room(timeout_ms);
			continue;
		}
		/* The rest of an earlier turn comes first: epoll would report the same busy streams again. */
		if (at == count) {
			if (out_pending(&exec_path) != want_out) watch_pipe(1, STDOUT_KEY, (want_out = !want_out) ? EPOLLOUT : 0);
			count = sys_epoll_wait(epoll_fd, events, EVENTS, timeout_ms);
			at = 0;
			if (count < 0) count = 0;
			now = now_ms();
		}
		for (; at < count && is_room(); at++) {
			if (events[at].data == STDIN_KEY) read_stdin();
			else if (events[at].data == STDOUT_KEY) {
				if (events[at].events & (EPOLLERR | EPOLLHUP)) leave(EXIT_FINE);
			} else if (events[at].data == TRUNK_KEY) trunk_ready(events[at].events);
			else if (events[at].data >> 32) streams_ready(events[at].data, events[at].events);
			else direct_ready(events[at].data, events[at].events);
		}
	}
}

static bool same_text(const char *a, const char *b) { return text_size(a) == text_size(b) && !memcmp(a, b, text_size(a)); }

/* Only tests pass arguments, and `--version`, with which the host checks that the agent runs. */
static void parse_arguments(int argc, char **argv) {
	for (int i = 1; i < argc; i++) {
		const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
		u64 number;
		size_t digits = parse_number((const u8 *)value, text_size(value), &number);
		if (same_text(name, "--version")) {
			static const char version[] = "autoforward-agent protocol 1\n";
			sys_write(1, version, sizeof version - 1);
			sys_exit(EXIT_FINE);
		}
		if (same_text(name, "--no-netlink")) netlink = false;
		else if (same_text(name, "--dumpable")) may_be_dumped = true;
		else if (same_text(name, "--silence-ms") && digits) silence_ms = (u32)number, i++;
		else if (same_text(name, "--dns-port") && digits) sources.port = (u16)number, i++;
		else if (same_text(name, "--hosts")) sources.hosts = value, i++;
		else if (same_text(name, "--resolv")) sources.resolv = value, i++;
		else {
			say("unknown argument: ", name);
			sys_exit(EXIT_USAGE);
		}
	}
}

int agent_main(int argc, char **argv);
int agent_main(int argc, char **argv) {
	static const struct {
		void (*handler)(int);
		unsigned long flags;
		void *restorer;
		u64 mask;
	} ignore = {(void (*)(int))1 /* SIG_IGN */, 0, NULL, 0};
	u64 limits[2];
	parse_arguments(argc, argv);
	stay_private(); /* other processes of this user must not read the secret of LISTEN */
	SYS(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0);
	SYS(rt_sigaction, 13 /* SIGPIPE */, &ignore, 0, 8, 0, 0);
	if (SYS(prlimit64, 0, 7 /* NOFILE */, 0, limits, 0, 0) == 0) {
		limits[0] = limits[1];
		SYS(prlimit64, 0, 7, limits, 0, 0, 0);
	}
	/* In an exec the agent owns both ends; restored at exit for a shell that runs it by hand. */
	for (int fd = 0; fd < 2; fd++) {
		old_flags[fd] = sys_fcntl(fd, F_GETFL, 0);
		sys_fcntl(fd, F_SETFL, old_flags[fd] | O_NONBLOCK);
		/* The engine reads what is there: larger pipes make larger chunks. Ignored if it is no pipe, or too much. */
		sys_fcntl(fd, F_SETPIPE_SZ, PIPE_SIZE);
	}
	now = last_heard = now_ms();
	epoll_fd = sys_epoll_create();
	watch_pipe(0, STDIN_KEY, EPOLLIN | EPOLLRDHUP);
	watch_pipe(1, STDOUT_KEY, 0);
	serve();
	return 0;
}
