/* Names: /etc/hosts, then the nameservers in /etc/resolv.conf. Both are read each time, because they may change.
 *
 * Search domains are not used: the engine's DNS (127.0.0.11) resolves services by their short names. */
#include "agent.h"

enum { RESOLVER_FILE_LIMIT = 64 * 1024, TYPE_A = 1, TYPE_AAAA = 28, DNS_HEADER = 12 };

struct sources sources = {"/etc/hosts", "/etc/resolv.conf", 53};
static u8 text[RESOLVER_FILE_LIMIT];

long read_file(const char *path, u8 *to, u32 size) {
	int fd = sys_open(path, O_RDONLY);
	if (fd < 0) return fd;
	u32 have = 0;
	long got = 0;
	while (have < size && (got = sys_read(fd, to + have, size - have)) > 0) have += (u32)got;
	sys_close(fd);
	return got < 0 ? got : (long)have;
}

int hex_digit(u8 c) {
	if (c >= '0' && c <= '9') return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool parse_v4(const u8 *at, u32 size, u8 *to) {
	for (u32 i = 0; i < 4; i++) {
		u64 number;
		if (i && (!size-- || *at++ != '.')) return false;
		u32 used = (u32)parse_number(at, size, &number);
		if (!used || used > 3 || number > 255) return false;
		to[i] = (u8)number;
		at += used;
		size -= used;
	}
	return size == 0;
}

static bool parse_v6(const u8 *at, u32 size, u8 *to) {
	u8 groups[16] = {0};
	u32 have = 0, gap = 16; /* position of `::` */
	if (size >= 2 && at[0] == ':' && at[1] == ':') gap = 0, at += 2, size -= 2;
	while (size) {
		u32 value = 0, digits = 0;
		for (; digits < size && digits < 5 && hex_digit(at[digits]) >= 0; digits++)
			value = value << 4 | (u32)hex_digit(at[digits]);
		if (have > 14 || !digits || digits > 4) return false;
		if (digits < size && at[digits] == '.') {
			if (have > 12 || !parse_v4(at, size, groups + have)) return false;
			have += 4;
			break;
		}
		put_u16(groups + have, value);
		have += 2;
		at += digits, size -= digits;
		if (!size) break;
		if (*at != ':' || size == 1) return false;
		at++, size--;
		if (*at == ':') {
			if (gap != 16) return false;
			gap = have, at++, size--;
		}
	}
	if ((gap == 16) != (have == 16)) return false;
	memset(to, 0, 16);
	memcpy(to, groups, lesser(gap, have));
	if (gap < have) memcpy(to + 16 - (have - gap), groups + gap, have - gap);
	return true;
}

bool parse_address(const u8 *at, u32 size, struct address *address) {
	for (u32 i = 0; i < size; i++)
		if (at[i] == '%') size = i; /* a scope: link-local, useless for loopback servers and nameservers */
	address->family = 4;
	if (parse_v4(at, size, address->bytes)) return true;
	address->family = 6;
	return parse_v6(at, size, address->bytes);
}

static bool same_name(const u8 *a, const u8 *b, u32 size) {
	for (u32 i = 0; i < size; i++) {
		u8 x = a[i], y = b[i];
		if (x >= 'A' && x <= 'Z') x |= 0x20;
		if (y >= 'A' && y <= 'Z') y |= 0x20;
		if (x != y) return false;
	}
	return true;
}

/* The next word of the line at *at; its size is 0 at the end of the line or at a comment. */
static u32 next_word(const u8 **at, const u8 *end) {
	while (*at < end && (**at == ' ' || **at == '\t' || **at == '\r')) ++*at;
	const u8 *word = *at;
	while (word < end && *word != ' ' && *word != '\t' && *word != '\r' && *word != '\n' && *word != '#') word++;
	return (u32)(word - *at);
}

static const u8 *next_line(const u8 *at, const u8 *end) {
	while (at < end && *at != '\n') at++;
	return at < end ? at + 1 : end;
}

u32 hosts_lookup(const u8 *name, u32 size, struct address *found, u32 most) {
	u32 count = 0, word;
	long length = read_file(sources.hosts, text, sizeof text);
	const u8 *at = text, *end = text + (length > 0 ? length : 0);
	for (; at < end && count < most; at = next_line(at, end)) {
		if (!(word = next_word(&at, end)) || !parse_address(at, word, &found[count])) continue;
		while (at += word, (word = next_word(&at, end)))
			if (word == size && same_name(at, name, size)) {
				count++;
				break;
			}
	}
	static const u8 loopback[] = "localhost"; /* its meaning does not depend on a file (RFC 6761) */
	if (!count && size == sizeof loopback - 1 && same_name(name, loopback, size) && most >= 2) {
		found[0] = (struct address){4, {127, 0, 0, 1}};
		found[1] = (struct address){6, {[15] = 1}};
		count = 2;
	}
	return count;
}

bool nameserver(u32 index, struct address *address) {
	static const u8 keyword[] = "nameserver";
	long length = read_file(sources.resolv, text, sizeof text);
	const u8 *at = text, *end = text + (length > 0 ? length : 0);
	for (u32 word; at < end; at = next_line(at, end)) {
		word = next_word(&at, end);
		if (word != sizeof keyword - 1 || memcmp(at, keyword, word)) continue;
		at += word;
		word = next_word(&at, end);
		if (parse_address(at, word, address) && !index--) return true;
	}
	return false;
}

/* A query for `name`; 0 if DNS cannot carry that name. */
static u32 dns_query(u8 *to, const u8 *name, u32 size, u16 id, u32 type) {
	memset(to, 0, DNS_HEADER);
	put_u16(to, id);
	to[2] = 1; /* recursion desired */
	to[5] = 1; /* one question */
	u32 at = DNS_HEADER, label = at++;
	if (size && name[size - 1] == '.') size--;
	for (u32 i = 0; i <= size; i++) {
		if (i < size && name[i] != '.') {
			to[at++] = name[i];
			continue;
		}
		u32 length = at - label - 1;
		if (!length || length > 63) return 0;
		to[label] = (u8)length;
		label = at++;
	}
	to[label] = 0;
	put_u16(to + at, type);
	put_u16(to + at + 2, 1 /* IN */);
	return at + 4;
}

u32 socket_address(struct sockaddr_in6 *to, const struct address *address, u32 port) {
	struct sockaddr_in v4 = {.sin_family = AF_INET};
	*to = (struct sockaddr_in6){.sin6_family = AF_INET6};
	put_u16((u8 *)&v4.sin_port, port);
	put_u16((u8 *)&to->sin6_port, port);
	memcpy(&v4.sin_addr, address->bytes, 4);
	memcpy(&to->sin6_addr, address->bytes, 16);
	if (address->family == 6) return sizeof *to;
	memcpy(to, &v4, sizeof v4);
	return sizeof v4;
}

int connect_address(int type, const struct address *address, u32 port, int *fd) {
	struct sockaddr_in6 where;
	u32 size = socket_address(&where, address, port);
	*fd = sys_socket(where.sin6_family, type, 0);
	if (*fd < 0) return *fd;
	int result = (int)sys_connect(*fd, &where, size);
	/* Over loopback the handshake is complete by now: checking is cheaper than a turn through epoll. */
	if (result == -EINPROGRESS) result = (int)sys_connect(*fd, &where, size);
	if (result == -EISCONN) result = 0;
	if (result == -EALREADY) result = -EINPROGRESS;
	if (result == 0 || result == -EINPROGRESS) return result;
	sys_close(*fd);
	*fd = -1;
	return result;
}

int dns_send(u32 index, const u8 *name, u32 size, u16 id) {
	struct address server;
	u8 query[DNS_HEADER + MAX_NAME + 8];
	int fd;
	if (!nameserver(index, &server)) return -ENOENT;
	int result = connect_address(SOCK_DGRAM, &server, sources.port, &fd);
	if (result < 0) return result;
	for (u16 i = 0; i < 2; i++) {
		u32 length = dns_query(query, name, size, id ^ i, i ? TYPE_AAAA : TYPE_A);
		if (!length || sys_send(fd, query, length) < 0) {
			sys_close(fd);
			return -EIO;
		}
	}
	return fd;
}

/* Skips a name at `at`; 0 if it exceeds the message. */
static u32 skip_name(const u8 *message, u32 size, u32 at) {
	while (at < size && message[at]) {
		if (message[at] >= 0xc0) return at + 2;
		at += 1u + message[at];
	}
	return at < size ? at + 1 : 0;
}

u32 dns_parse(const u8 *answer, u32 size, u16 id, int *which, struct address *found, u32 most) {
	u32 count = 0;
	*which = UNRELATED;
	if (size < DNS_HEADER || !(answer[2] & 0x80) || (get_u16(answer) ^ id) > 1 || get_u16(answer + 4) != 1) return 0;
	u32 code = answer[3] & 15;
	*which = code == 2 || code == 5 ? FAILED : (int)(get_u16(answer) ^ id); /* SERVFAIL, REFUSED: no answer */
	if (*which == FAILED) return 0;
	u32 type = *which ? TYPE_AAAA : TYPE_A, length = *which ? 16 : 4;
	u32 at = skip_name(answer, size, DNS_HEADER);
	if (!at) return 0;
	at += 4;
	for (u32 left = get_u16(answer + 6); left && count < most; left--) {
		/* A chain of aliases ends in addresses under another name: any address in the answer counts. */
		at = skip_name(answer, size, at);
		if (!at || size < 10 || at > size - 10) break;
		u32 has = get_u16(answer + at + 8);
		if (has > size - at - 10) break;
		if (get_u16(answer + at) == type && get_u16(answer + at + 2) == 1 && has == length) {
			found[count].family = *which ? 6 : 4;
			memcpy(found[count++].bytes, answer + at + 10, length);
		}
		at += 10 + has;
	}
	return count;
}
