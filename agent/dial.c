/* From an OPEN to a connection: resolve names, dial addresses in the host's order. */
#include "streams.h"

enum { CONNECT_MS = 20000, DNS_MS = 2000, DNS_SECOND_ANSWER_MS = 200 };
/* As many nameservers as other resolvers query. A silent one has this long before the next is queried; the last has DNS_MS. */
enum { MAX_NAMESERVERS = 3, NEXT_NAMESERVER_MS = 1000 };

/* Dialling a port without a listener can connect to itself, if the kernel picks that port as the source. */
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

/* Queries nameserver `d->server`, or the first after it that can be queried; false if there is none. */
static bool ask(struct stream *s) {
	struct dial *d = s->dial;
	const u8 *name = d->payload + d->at - d->name_size;
	struct address next;
	for (; d->server < MAX_NAMESERVERS; d->server++) {
		sys_random(&d->id, sizeof d->id);
		d->answered = 0;
		s->fd = dns_send(d->server, name, d->name_size, d->id);
		if (s->fd == -ENOENT) break;
		if (s->fd < 0) continue;
		s->state = RESOLVING;
		bool is_last = d->server == MAX_NAMESERVERS - 1 || !nameserver(d->server + 1u, &next);
		set_deadline(s, now + (is_last ? DNS_MS : NEXT_NAMESERVER_MS));
		if (watch_socket(s, EPOLLIN)) return true;
		close_socket(s);
		break;
	}
	s->fd = -1;
	return false;
}

/* Continues with the next address: to a connection, a wait, or, after the last, a refusal with `error`. */
enum dial_outcome dial_next(struct stream *s) {
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
				if (result == 0) return DIAL_OPEN;
				s->state = CONNECTING;
				set_deadline(s, now + CONNECT_MS);
				if (watch_socket(s, EPOLLOUT)) return DIAL_WAITS;
				dial_failed(s, ENOMEM);
			}
		}
		if (d->at == d->size) return DIAL_REFUSED;
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
			d->server = 0;
			d->name_size = (u8)length;
			if (ask(s)) return DIAL_WAITS;
		}
	}
}

/* The nameserver did not answer this query: query the next one; without one, use what is known. */
static enum dial_outcome ask_next(struct stream *s) {
	close_socket(s);
	s->dial->server++;
	return s->dial->found_count || !ask(s) ? dial_next(s) : DIAL_WAITS;
}

static enum dial_outcome dns_ready(struct stream *s) {
	struct dial *d = s->dial;
	u8 answer[1500];
	long size = sys_read(s->fd, answer, sizeof answer);
	if (size == -EAGAIN) return DIAL_WAITS;
	int which = FAILED; /* also if nothing listens at the nameserver's address */
	u32 count = size < 0 ? 0 : dns_parse(answer, (u32)size, d->id, &which, d->found + d->found_count, MAX_FOUND / 2);
	if (which == FAILED) return ask_next(s);
	if (which < 0 || d->answered & 1 << which) return DIAL_WAITS;
	d->answered |= (u8)(1 << which);
	d->found_count = (u8)(d->found_count + count);
	set_deadline(s, now + (d->found_count ? DNS_SECOND_ANSWER_MS : DNS_MS));
	if (d->answered != 3) return DIAL_WAITS;
	close_socket(s);
	return dial_next(s);
}

enum dial_outcome dial_ready(struct stream *s) {
	if (s->state == RESOLVING) return dns_ready(s);
	int error = socket_error(s);
	if (!error && met_itself(s, get_u16(s->dial->payload + 1))) error = ECONNREFUSED;
	if (!error) return DIAL_OPEN;
	dial_failed(s, error);
	return dial_next(s);
}

enum dial_outcome dial_late(struct stream *s) {
	if (s->state == RESOLVING) return ask_next(s);
	dial_failed(s, ETIMEDOUT);
	return dial_next(s);
}
