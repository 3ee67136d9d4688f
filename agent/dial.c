/* From an OPEN to a connection: names looked up, addresses dialled in the order that the host gave. */
#include "streams.h"

enum { CONNECT_MS = 20000, DNS_MS = 2000, DNS_SECOND_ANSWER_MS = 200 };

/* A dial of a port that nobody listens on can meet itself, where the kernel picked that very port to dial from. */
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

/* Goes on with the next address: to a connection, a wait, or a refusal. */
void dial_next(struct stream *s) {
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
				if (result == 0) return opened(s);
				s->state = CONNECTING;
				set_deadline(s, now + CONNECT_MS);
				if (watch_socket(s, EPOLLOUT)) return;
				dial_failed(s, ENOMEM);
			}
		}
		if (d->at == d->size) {
			refuse(s->path, s->number, d->error);
			return finish(s);
		}
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
			sys_getrandom(&d->id, sizeof d->id);
			d->answered = 0;
			s->fd = dns_send(bytes, length, d->id);
			if (s->fd < 0) continue;
			s->state = RESOLVING;
			set_deadline(s, now + DNS_MS);
			if (watch_socket(s, EPOLLIN)) return;
			dial_failed(s, ENOENT);
		}
	}
}

static void dns_ready(struct stream *s) {
	struct dial *d = s->dial;
	u8 answer[1500];
	long size = sys_read(s->fd, answer, sizeof answer);
	if (size == -EAGAIN) return;
	if (size < 0) {
		d->answered = 3; /* nobody is there to ask */
	} else {
		int which;
		u32 count = dns_parse(answer, (u32)size, d->id, &which, d->found + d->found_count, MAX_FOUND / 2);
		if (which < 0 || d->answered & 1 << which) return;
		d->answered |= (u8)(1 << which);
		d->found_count = (u8)(d->found_count + count);
		if (d->found_count) set_deadline(s, now + DNS_SECOND_ANSWER_MS);
	}
	if (d->answered != 3) return;
	close_socket(s);
	dial_next(s);
}

void dial_ready(struct stream *s) {
	if (s->state == RESOLVING) return dns_ready(s);
	int error = socket_error(s);
	if (!error && met_itself(s, get_u16(s->dial->payload + 1))) error = ECONNREFUSED;
	if (!error) return opened(s);
	dial_failed(s, error);
	dial_next(s);
}

void dial_late(struct stream *s) {
	dial_failed(s, s->state == CONNECTING ? ETIMEDOUT : ENOENT);
	dial_next(s);
}
