/* The one buffer towards stdout: a ring, written with as few calls as it takes. See agent.h. */
#include "agent.h"

enum { SIZE = 256 * 1024 };
static u8 ring[SIZE];
static u32 head, tail; /* count bytes for ever; positions are modulo SIZE */

u32 out_room(void) { return SIZE - (tail - head); }
bool out_pending(void) { return tail != head; }

/* The ring from `from` on, `size` bytes, as one or two pieces. */
static long pieces(struct iovec *parts, u32 from, u32 size) {
	u32 start = from % SIZE, first = lesser(size, SIZE - start);
	parts[0] = (struct iovec){ring + start, first};
	parts[1] = (struct iovec){ring, size - first};
	return size > first ? 2 : 1;
}

static void put(u32 at, const u8 *bytes, u32 size) {
	struct iovec parts[2];
	long count = pieces(parts, at, size);
	memcpy(parts[0].iov_base, bytes, parts[0].iov_len);
	if (count == 2) memcpy(parts[1].iov_base, bytes + parts[0].iov_len, parts[1].iov_len);
}

void out_bytes(const u8 *bytes, u32 size) {
	if (size > out_room()) sys_exit(5); /* the rooms in agent.h make this impossible; never write over what waits */
	put(tail, bytes, size);
	tail += size;
}

void out_frame(enum frame_type type, u32 flags, u32 stream, const u8 *payload, u32 size) {
	u8 header[HEADER_SIZE];
	out_bytes(header, wire_header(header, type, flags, size, stream));
	if (size) out_bytes(payload, size);
}

void out_value(enum frame_type type, u32 stream, u32 value) {
	u8 payload[4];
	put_u32(payload, value);
	out_frame(type, 0, stream, payload, sizeof payload);
}

long out_receive(int fd, u32 stream, u32 most, bool datagram) {
	struct iovec parts[2];
	u8 header[HEADER_SIZE];
	long count = pieces(parts, tail + HEADER_SIZE, most);
	long size = sys_readv(fd, parts, count);
	if (size < 0 || (size == 0 && !datagram)) return size;
	put(tail, header, wire_header(header, DATA, 0, (u32)size, stream));
	tail += HEADER_SIZE + (u32)size;
	return size;
}

long out_flush(void) {
	while (tail != head) {
		struct iovec parts[2];
		long written = sys_writev(1, parts, pieces(parts, head, tail - head));
		if (written < 0) return written == -EAGAIN || written == -EINTR ? 0 : written;
		bool all = (u32)written == tail - head;
		head += (u32)written;
		/* A full pipe is drained a page at a time: to try again now would feed the engine crumbs. */
		if (!all) return 0;
	}
	return 0;
}
