/* What the container of the simulation lists: its sockets, by netlink and in /proc, its processes and its files. */
#include "simulation.h"

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct listening *row(u32 entry, u32 *copy) {
	if (entry >= k->row_count * k->copies) return NULL;
	*copy = entry / k->row_count;
	return &k->rows[entry % k->row_count];
}

long netlink_answer(struct file *f, u8 *to, u32 size) {
	u32 have = 0, copy;
	bool tcp = f->questions[0] == TCPDIAG_GETSOCK;
	for (const struct listening *l; (l = row(f->entry, &copy)) && have + 200 < size; f->entry++) {
		if (l->udp == tcp || (!tcp && l->family != f->questions[1])) continue;
		struct {
			struct nlmsghdr head;
			struct inet_diag_msg of;
		} m = {{sizeof m, SOCK_DIAG_BY_FAMILY, 0, 0, 0}, {.idiag_family = l->family == 4 ? AF_INET : AF_INET6}};
		put_u16((u8 *)&m.of.id.idiag_sport, l->port + copy);
		m.of.idiag_inode = l->inode + copy;
		memcpy(to + have, &m, sizeof m);
		have += (u32)sizeof m;
	}
	if (k->answers == 2 && have > 20) return have - 20; /* cut off */
	if (have) return have;
	struct nlmsghdr done = {NLMSG_HDRLEN, k->answers == 3 ? NLMSG_ERROR : NLMSG_DONE, k->answers == 1 ? NLM_F_DUMP_INTR : 0, 0, 0};
	memcpy(to, &done, sizeof done);
	return NLMSG_HDRLEN;
}

static long table_text(struct file *f, u8 *to, u32 size) {
	u32 have = 0, copy;
	char line[256];
	if (!f->entry++) return snprintf((char *)to, size, "  sl  local_address rem_address   st\n");
	for (const struct listening *l; (l = row(f->entry - 2, &copy)); f->entry++) {
		u32 words = l->family == 4 ? 1 : 4;
		if (l->udp != f->udp || l->family != f->questions[1]) continue;
		int n = snprintf(line, sizeof line, "%4u: %.*s:%04X %.*s:0000 %s 0:0 00:0 0 %u 0 %u 1\n", f->entry, (int)words * 8,
		                 "0100007F000000000000000001000000", (l->port + copy) & 0xffff, (int)words * 8,
		                 "00000000000000000000000000000000", k->answers == 4 ? "0A0A" : l->udp ? "07" : "0A", l->pid, l->inode + copy);
		if (have + (u32)n > size) break;
		memcpy(to + have, line, (size_t)n);
		have += (u32)n;
	}
	f->entry++;
	return have;
}

long text_of(struct file *f, u8 *to, u32 size) {
	if (f->way) return table_text(f, to, size);
	u32 has = lesser(size, f->end - f->at);
	if (has) memcpy(to, (f->questions[0] ? k->hosts : (const u8 *)"node\0server.js\0\0\0nameserver 127.0.0.53\n") + f->at, has);
	f->at += has;
	return has;
}

#define same(a, b) (!strcmp(a, b))

long open_path(long folder, const char *path) {
	if (fails(AT_OPEN)) return -EACCES;
	bool is_folder = same(path, "/proc") || folder != AT_FDCWD;
	u32 pid = folder == AT_FDCWD ? 0 : (u32)atol(path);
	if (folder != AT_FDCWD) file_of(folder, FOLDER);
	if (folder != AT_FDCWD && !pid) return -ENOENT;
	int fd = open_file(is_folder ? FOLDER : TEXT_FILE);
	if (fd < 0) return fd;
	struct file *f = &k->files[fd];
	f->who = (u8)pid;
	if (!strncmp(path, "/proc/net/", 10)) {
		f->way = 1;
		f->udp = path[10] == 'u';
		f->questions[1] = path[13] == '6' ? 6 : 4;
	} else if (same(path, "/etc/hosts")) {
		f->questions[0] = 1;
		f->end = k->hosts_size;
	} else if (same(path, "/etc/resolv.conf")) {
		f->at = 17, f->end = 39;
	} else {
		f->end = 17;
	}
	return fd;
}

/* /proc: the processes 1 to 5, and what is none; a process's descriptors: the sockets that are its own. */
long list(struct file *f, u8 *to, u32 size) {
	u32 have = 0;
	u32 count = f->who ? 3 + k->row_count : 8;
	for (; f->entry < count && have + 64 < size; f->entry++) {
		char name[16];
		if (!f->who && f->entry > 5) snprintf(name, sizeof name, "self%u", f->entry);
		else snprintf(name, sizeof name, "%u", f->entry);
		u16 length = 32;
		memset(to + have, 0, 32);
		memcpy(to + have + 16, &length, 2);
		memcpy(to + have + 19, name, text_size(name));
		have += 32;
	}
	return have;
}

/* Users of the processes: root without CAP_SYS_PTRACE sees descriptors of none but its own. */
static u32 user_of(u32 pid) { return pid % 3 * 1000; }

long owner_of(struct file *f, const char *pid, struct stat *to) {
	if (f->who) broken("the owner of what is no process", f->who, 0);
	if (fails(AT_OPEN)) return -ENOENT;
	to->st_uid = to->st_gid = user_of((u32)atol(pid));
	return 0;
}

long link_of(struct file *f, const char *name, u8 *to, u32 size) {
	static const char network[] = "net:[4026531840]";
	if (!f) return fails(AT_OPEN) ? -EACCES : (memcpy(to, network, sizeof network - 1), (long)sizeof network - 1);
	u32 number = (u32)atol(name);
	if (k->dumpable) broken("looks at another's descriptors while others can look at it", k->user, k->group);
	if (k->user != user_of(f->who) || k->group != user_of(f->who)) return -EACCES;
	char link[48];
	if (number < 3 || number - 3 >= k->row_count) return -ENOENT;
	const struct listening *l = &k->rows[number - 3];
	if (l->pid != f->who) snprintf(link, sizeof link, "pipe:[77]");
	else snprintf(link, sizeof link, "socket:[%u]", l->inode);
	u32 has = lesser(size, (u32)text_size(link));
	memcpy(to, link, has);
	return has;
}
