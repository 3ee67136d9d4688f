/* Find listening sockets and their processes.
 *
 * NETLINK_SOCK_DIAG returns only listening sockets (0.1 % of a core at 100 ms, /proc takes 5.6 %). If the kernel lacks it
 * (gVisor), /proc/net is read instead, less often, and still less often where reading is slow. */
#include "agent.h"

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>

enum { MAX_ENTRIES = 4096, ENTRIES_PER_FRAME = 1024, MAX_COMMAND = 1024, LOOKUPS_PER_TURN = 256 };
enum { TCP_STATE_LISTEN = 10, STATE_CLOSED = 7 /* bound UDP sockets without a peer */ };
enum { PROC_FACTOR = 5, PROC_BASE_MS = 500, PROC_LIMIT_MS = 2000, PROC_COST_FACTOR = 100, PATIENCE = 3 };

static u8 tables[2][MAX_ENTRIES * ENTRY_SIZE], *shown = tables[0], *fresh = tables[1];
static u32 shown_count, fresh_count, sent_count;
static bool cut_short, cut_shown, sending, first, with_udp, use_netlink;
static u32 interval, pace, failures;
static u64 next_poll = UINT64_MAX;
static int netlink_fd = -1;
bool netlink = true;
static u8 buffer[32 * 1024] __attribute__((aligned(8)));

static void add_entry(u32 transport, u32 family, const u8 *address, u32 port, u32 uid, u64 inode) {
	static const u8 mapped[12] = {[10] = 0xff, [11] = 0xff};
	if (!port || inode == direct_inode) return;
	if (fresh_count == MAX_ENTRIES) {
		cut_short = true;
		return;
	}
	if (family == 6 && !memcmp(address, mapped, sizeof mapped)) family = 4, address += sizeof mapped;
	wire_entry(fresh + fresh_count++ * ENTRY_SIZE, transport, family, port, uid, inode, address);
}

/* One dump; false when the kernel cannot, or was interrupted. The answer is there as soon as the request is sent.
 *
 * The walk over the kernel's table of listeners is the cost, whatever it finds: TCPDIAG_GETSOCK, the older request, returns
 * both families at once. UDP has only the newer one, per family. */
static bool dump(u32 transport, u8 family) {
	struct {
		struct nlmsghdr header;
		union {
			struct inet_diag_req both;
			struct inet_diag_req_v2 one;
		} request;
	} ask = {0};
	bool tcp = transport == TRANSPORT_TCP;
	ask.header.nlmsg_len = (u32)NLMSG_LENGTH(tcp ? sizeof ask.request.both : sizeof ask.request.one);
	ask.header.nlmsg_type = tcp ? TCPDIAG_GETSOCK : SOCK_DIAG_BY_FAMILY;
	ask.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
	if (tcp) {
		ask.request.both.idiag_family = family;
		ask.request.both.idiag_states = 1u << TCP_STATE_LISTEN;
	} else {
		ask.request.one.sdiag_family = family;
		ask.request.one.sdiag_protocol = IPPROTO_UDP;
		ask.request.one.idiag_states = 1u << STATE_CLOSED;
	}
	if (sys_send(netlink_fd, &ask, ask.header.nlmsg_len) < 0) return false;
	for (;;) {
		long size = sys_read(netlink_fd, buffer, sizeof buffer);
		if (size <= 0) return false;
		const struct nlmsghdr *m = (const struct nlmsghdr *)buffer;
		for (u32 left = (u32)size; NLMSG_OK(m, left); m = NLMSG_NEXT(m, left)) {
			if (m->nlmsg_type == NLMSG_DONE) return !(m->nlmsg_flags & NLM_F_DUMP_INTR);
			if (m->nlmsg_type == NLMSG_ERROR) return false;
			if (m->nlmsg_len < NLMSG_LENGTH(sizeof(struct inet_diag_msg))) continue;
			const struct inet_diag_msg *found = NLMSG_DATA(m);
			u32 port = get_u16((const u8 *)&found->id.idiag_sport), its_family = found->idiag_family == AF_INET ? 4 : 6;
			add_entry(transport, its_family, (const u8 *)found->id.idiag_src, port, found->idiag_uid, found->idiag_inode);
		}
	}
}

/* Hexadecimal digits at *at; returns how many there were. */
static u32 parse_hex(const u8 **at, u32 most, u32 *value) {
	u32 digits = 0;
	for (*value = 0; digits < most && hex_digit(**at) >= 0; digits++) *value = *value << 4 | (u32)hex_digit(*(*at)++);
	return digits;
}

/* `sl: ADDRESS:PORT REMOTE STATE queues timer retransmits UID timeout INODE …`; the line ends in a newline. */
static void add_line(const u8 *at, u32 transport) {
	u32 address[4], words = 0, port, state, column = 0;
	u64 number[2] = {0, 0};
	while (*at != ':' && *at != '\n') at++;
	while (*at == ':' || *at == ' ') at++;
	while (words < 4 && parse_hex(&at, 8, &address[words]) == 8) words++; /* words as the kernel has them in memory */
	if ((words != 1 && words != 4) || *at++ != ':' || parse_hex(&at, 4, &port) != 4 || *at++ != ' ') return;
	while (*at != ' ' && *at != '\n') at++;
	if (*at++ != ' ' || parse_hex(&at, 2, &state) != 2) return;
	if (state != (transport == TRANSPORT_TCP ? TCP_STATE_LISTEN : STATE_CLOSED)) return;
	while (*at != '\n' && column < 6) {
		while (*at == ' ') at++;
		column++;
		const u8 *word = at;
		while (*at != ' ' && *at != '\n') at++;
		if (column == 4 || column == 6) parse_number(word, (size_t)(at - word), &number[column == 6]);
	}
	add_entry(transport, words == 1 ? 4 : 6, (const u8 *)address, port, (u32)number[0], number[1]);
}

/* Opened again at each poll: some kernels mishandle a seek to 0. A missing file means no sockets. */
static void read_table(const char *path, u32 transport) {
	int fd = sys_open(path, O_RDONLY);
	if (fd < 0) return;
	u32 have = 0;
	bool heading = true;
	for (long got; (got = sys_read(fd, buffer + have, sizeof buffer - have)) > 0;) {
		u32 start = 0;
		have += (u32)got;
		for (u32 i = have - (u32)got; i < have; i++) {
			if (buffer[i] != '\n') continue;
			if (!heading) add_line(buffer + start, transport);
			heading = false;
			start = i + 1;
		}
		if (!start && have == sizeof buffer) break; /* no table has such a long line */
		memmove(buffer, buffer + start, have - start);
		have -= start;
	}
	sys_close(fd);
}

static bool collect(void) {
	fresh_count = 0;
	cut_short = false;
	if (use_netlink) {
		if (netlink_fd < 0) netlink_fd = sys_socket(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG);
		bool whole = netlink_fd >= 0 && dump(TRANSPORT_TCP, AF_INET) &&
		             (!with_udp || (dump(TRANSPORT_UDP, AF_INET) && dump(TRANSPORT_UDP, AF_INET6)));
		if (whole) failures = 0;
		if (whole) return true;
		/* The rest of an answer must not be taken for the next one. */
		if (netlink_fd >= 0) sys_close(netlink_fd);
		netlink_fd = -1;
		use_netlink = ++failures < PATIENCE;
		return false;
	}
	u64 before = cpu_us();
	read_table("/proc/net/tcp", TRANSPORT_TCP);
	read_table("/proc/net/tcp6", TRANSPORT_TCP);
	if (with_udp) read_table("/proc/net/udp", TRANSPORT_UDP);
	if (with_udp) read_table("/proc/net/udp6", TRANSPORT_UDP);
	u64 dear = (cpu_us() - before) * PROC_COST_FACTOR / 1000;
	u32 base = lesser(interval * PROC_FACTOR, interval > PROC_BASE_MS ? interval : PROC_BASE_MS);
	pace = dear <= base ? base : dear < PROC_LIMIT_MS ? (u32)dear : base > PROC_LIMIT_MS ? base : PROC_LIMIT_MS;
	return true;
}

/* Shell sort: the input is nearly sorted; no recursion. Removes duplicates, which an interrupted kernel walk can return. */
static void sort_fresh(void) {
	u8 held[ENTRY_SIZE];
	for (u32 gap = fresh_count / 2; gap; gap /= 2)
		for (u32 i = gap; i < fresh_count; i++) {
			u32 at = i;
			memcpy(held, fresh + i * ENTRY_SIZE, ENTRY_SIZE);
			for (; at >= gap && memcmp(fresh + (at - gap) * ENTRY_SIZE, held, ENTRY_SIZE) > 0; at -= gap)
				memcpy(fresh + at * ENTRY_SIZE, fresh + (at - gap) * ENTRY_SIZE, ENTRY_SIZE);
			memcpy(fresh + at * ENTRY_SIZE, held, ENTRY_SIZE);
		}
	u32 kept = fresh_count ? 1 : 0;
	for (u32 i = 1; i < fresh_count; i++) {
		const u8 *entry = fresh + i * ENTRY_SIZE;
		if (!memcmp(fresh + (kept - 1) * ENTRY_SIZE, entry, ENTRY_SIZE)) continue;
		if (kept != i) memcpy(fresh + kept * ENTRY_SIZE, entry, ENTRY_SIZE);
		kept++;
	}
	fresh_count = kept;
}

/* Inodes to find the process of; one walk over /proc serves all that were wanted when it began. */
static u64 wanted[MAX_ENTRIES];
static u32 wanted_count, walk_count; /* the walk covers the first walk_count */
static int proc_fd = -1, fds_fd = -1;
static u8 proc_names[4096], fds_names[4096];
static u32 proc_at, proc_size, fds_at, fds_size, walk_pid;

/* A root without CAP_SYS_PTRACE, the usual one in containers, may not read another user's descriptors, but that user may. So
 * each process is inspected with its own user's fsuid and fsgid, by which the kernel judges access to files and /proc/PID/fd.
 * The user IDs for signals and ptrace stay root's: that user's processes can neither signal this one nor read its memory.
 * Each change makes this process as dumpable as fs.suid_dumpable says, for a moment; if that is 1, for everyone, it is not
 * done. */
static bool may_look_as_others;
static u32 own[2], looks_as[2], walk_owner[2]; /* user, group; walk_owner: of the process that a walk stopped at */

static void look_as(u32 user, u32 group) {
	if (user == looks_as[0] && group == looks_as[1]) return;
	SYS(setfsgid, group, 0, 0, 0, 0, 0);
	SYS(setfsuid, user, 0, 0, 0, 0, 0);
	stay_private();
	looks_as[0] = user, looks_as[1] = group;
}

static void look_as_owner(const char *pid) {
	struct stat about;
	if (!may_look_as_others) return;
	bool found = SYS(newfstatat, proc_fd, pid, &about, 0, 0, 0) == 0;
	look_as(found ? about.st_uid : own[0], found ? about.st_gid : own[1]);
}

static u64 inode_of(const u8 *entry) { return (u64)get_u32(entry + 8) << 32 | get_u32(entry + 12); }

/* Both tables are sorted: entries only in the fresh one are new. */
static void want_new(void) {
	for (u32 i = 0, j = 0; i < fresh_count; i++) {
		const u8 *entry = fresh + i * ENTRY_SIZE;
		int order = -1;
		while (j < shown_count && (order = memcmp(shown + j * ENTRY_SIZE, entry, ENTRY_SIZE)) < 0) j++;
		bool known = j < shown_count && order == 0;
		if (!known && inode_of(entry) && wanted_count < MAX_ENTRIES) wanted[wanted_count++] = inode_of(entry);
	}
}

static void tell_process(u64 inode, u32 pid) {
	u8 payload[12 + MAX_COMMAND], path[32] = "/proc/";
	u32 size = 0, at = 6;
	put_u64(payload, inode);
	put_u32(payload + 8, pid);
	if (pid) {
		u32 scale = 1;
		while (pid / scale >= 10) scale *= 10;
		for (; scale; scale /= 10) path[at++] = (u8)('0' + pid / scale % 10);
		memcpy(path + at, "/cmdline", 9);
		long got = read_file((const char *)path, payload + 12, MAX_COMMAND);
		size = got > 0 ? (u32)got : 0;
		while (size && !payload[12 + size - 1]) size--;
	}
	out_frame(&exec_path, PROCESS, 0, 0, payload, 12 + size);
}

/* The next numeric name in a folder; false at its end. */
static bool next_number(int fd, u8 *names, u32 *at, u32 *have, const char **name, u32 *number) {
	struct dirent64 {
		u64 inode, offset;
		u16 size;
		u8 type, name[];
	};
	for (;;) {
		if (*at >= *have) {
			long got = sys_getdents(fd, names, 4096);
			if (got <= 0) return false;
			*at = 0;
			*have = (u32)got;
		}
		const u8 *entry = names + *at, *text = entry + offsetof(struct dirent64, name);
		u16 size;
		u64 value;
		memcpy(&size, entry + offsetof(struct dirent64, size), sizeof size);
		*at += size;
		size_t digits = parse_number(text, 16, &value);
		if (!digits || text[digits] || value > 0x7fffffff) continue;
		*name = (const char *)text;
		*number = (u32)value;
		return true;
	}
}

static void check_link(const char *name) {
	u8 link[48];
	u64 inode;
	long size = sys_readlinkat(fds_fd, name, link, sizeof link);
	if (size < 10 || memcmp(link, "socket:[", 8)) return;
	parse_number(link + 8, (size_t)size - 8, &inode);
	for (u32 i = 0; i < walk_count; i++) {
		if (wanted[i] != inode) continue;
		tell_process(inode, walk_pid);
		wanted[i] = wanted[--walk_count]; /* keep this walk's inodes in front */
		wanted[walk_count] = wanted[--wanted_count];
		return;
	}
}

static void end_walk(void) {
	if (fds_fd >= 0) sys_close(fds_fd);
	if (proc_fd >= 0) sys_close(proc_fd);
	fds_fd = proc_fd = -1;
}

/* Inspects a bounded number of descriptors; true if there are more. */
static bool walk_on(void) {
	const char *name;
	u32 number;
	if (proc_fd < 0) {
		walk_count = wanted_count;
		proc_fd = sys_open("/proc", O_RDONLY | O_DIRECTORY);
		proc_at = proc_size = 0;
	}
	for (u32 looked = 0; looked < LOOKUPS_PER_TURN && walk_count; looked++) {
		if (out_room(&exec_path) < ROOM_FOR_STREAMS) return true;
		if (fds_fd >= 0) {
			if (next_number(fds_fd, fds_names, &fds_at, &fds_size, &name, &number)) {
				check_link(name);
				continue;
			}
			sys_close(fds_fd);
			fds_fd = -1;
		}
		if (proc_fd < 0 || !next_number(proc_fd, proc_names, &proc_at, &proc_size, &name, &walk_pid)) {
			/* The last pass: the inodes still wanted belong to processes whose descriptors are unreadable. */
			tell_process(wanted[--walk_count], 0);
			wanted[walk_count] = wanted[--wanted_count];
			continue;
		}
		u8 path[24];
		size_t size = text_size(name);
		look_as_owner(name);
		memcpy(path, name, size);
		memcpy(path + size, "/fd", 4);
		fds_fd = sys_openat(proc_fd, path, O_RDONLY | O_DIRECTORY);
		fds_at = fds_size = 0;
	}
	if (!walk_count) end_walk();
	return wanted_count != 0;
}

static bool walk(void) {
	if (fds_fd >= 0) look_as(walk_owner[0], walk_owner[1]);
	bool more = walk_on();
	memcpy(walk_owner, looks_as, sizeof walk_owner);
	look_as(own[0], own[1]);
	return more;
}

static void send_snapshot(void) {
	u32 count = lesser(shown_count - sent_count, ENTRIES_PER_FRAME);
	sending = sent_count + count < shown_count;
	u32 flags = (sending ? SNAPSHOT_MORE : 0) | (cut_shown ? SNAPSHOT_CUT : 0);
	out_frame(&exec_path, SNAPSHOT, flags, 0, shown + sent_count * ENTRY_SIZE, count * ENTRY_SIZE);
	sent_count += count;
}

/* The network namespace and the machine's boot: "BOOT_ID net:[INODE]". Omitted if unknown. */
static void tell_network(void) {
	u8 text[MAX_NETWORK];
	long size = read_file("/proc/sys/kernel/random/boot_id", text, MAX_NETWORK / 2);
	while (size > 0 && text[size - 1] == '\n') size--;
	if (size <= 0) return;
	text[size++] = ' ';
	long link = sys_readlinkat(AT_FDCWD, "/proc/self/ns/net", text + size, MAX_NETWORK - size);
	if (link > 0) out_frame(&exec_path, NETWORK, 0, 0, text, (u32)(size + link));
}

void watch_start(u32 interval_ms, bool udp) {
	u8 dumpable = 0;
	read_file("/proc/sys/fs/suid_dumpable", &dumpable, 1);
	own[0] = looks_as[0] = (u32)SYS(geteuid, 0, 0, 0, 0, 0, 0);
	own[1] = looks_as[1] = (u32)SYS(getegid, 0, 0, 0, 0, 0, 0);
	may_look_as_others = own[0] == 0 && dumpable != '1';
	interval = interval_ms && interval_ms < 10 ? 10 : lesser(interval_ms, 60000);
	pace = interval;
	with_udp = udp;
	use_netlink = netlink;
	first = true;
	failures = 0;
	next_poll = interval ? 0 : UINT64_MAX;
	if (interval) return;
	end_walk();
	wanted_count = walk_count = 0;
}

static void poll(void) {
	if (!collect()) {
		next_poll = now + (use_netlink ? 10 : 0);
		return;
	}
	next_poll = now + pace;
	sort_fresh();
	bool same = fresh_count == shown_count && cut_short == cut_shown && !memcmp(fresh, shown, fresh_count * ENTRY_SIZE);
	if (same && !first) return;
	if (first) {
		shown_count = 0; /* the host asked again: send all processes again */
		tell_network();
	}
	want_new();
	u8 *old = shown;
	shown = fresh;
	fresh = old;
	shown_count = fresh_count;
	cut_shown = cut_short;
	sent_count = 0;
	sending = true;
	first = false;
}

u64 watch_turn(void) {
	if (out_room(&exec_path) < ROOM_FOR_STREAMS) return next_poll; /* called again when stdout has drained */
	if (!sending && now >= next_poll) poll();
	while (sending && out_room(&exec_path) >= ROOM_FOR_STREAMS) send_snapshot();
	if (sending) return 0;
	if (wanted_count && walk()) return 0;
	return next_poll;
}
