/* Output to the host: a ring per path, written with as few calls as possible. See agent.h. */
#include "agent.h"

static u8 exec_ring[PATH_RING], exec_datagram[MAX_PAYLOAD];
struct path exec_path = {.in = 0, .out = 1, .ring = exec_ring, .datagram = exec_datagram};

u32 out_room(const struct path *to) { return PATH_RING - (to->tail - to->head); }
bool out_pending(const struct path *to) { return to->tail != to->head; }

/* The ring from `from`, `size` bytes, as one or two iovecs. */
static long pieces(struct path *to, struct iovec *parts, u32 from, u32 size) {
	u32 start = from % PATH_RING, first = lesser(size, PATH_RING - start);
	parts[0] = (struct iovec){to->ring + start, first};
	parts[1] = (struct iovec){to->ring, size - first};
	return size > first ? 2 : 1;
}

static void put(struct path *to, u32 at, const u8 *bytes, u32 size) {
	struct iovec parts[2];
	long count = pieces(to, parts, at, size);
	memcpy(parts[0].iov_base, bytes, parts[0].iov_len);
	if (count == 2) memcpy(parts[1].iov_base, bytes + parts[0].iov_len, parts[1].iov_len);
}

void out_bytes(struct path *to, const u8 *bytes, u32 size) {
	if (size > out_room(to)) sys_exit(5); /* impossible with the rooms in agent.h; never overwrite queued bytes */
	put(to, to->tail, bytes, size);
	to->tail += size;
}

void out_frame(struct path *to, enum frame_type type, u32 flags, u32 stream, const u8 *payload, u32 size) {
	u8 header[HEADER_SIZE];
	out_bytes(to, header, wire_header(header, type, flags, size, stream));
	if (size) out_bytes(to, payload, size);
}

void out_value(struct path *to, enum frame_type type, u32 stream, u32 value) {
	u8 payload[4];
	put_u32(payload, value);
	out_frame(to, type, 0, stream, payload, sizeof payload);
}

long out_receive(struct path *to, int fd, u32 stream, u32 most, bool datagram) {
	struct iovec parts[2];
	u8 header[HEADER_SIZE];
	long count = pieces(to, parts, to->tail + HEADER_SIZE, most);
	long size = sys_readv(fd, parts, count);
	if (size < 0 || (size == 0 && !datagram)) return size;
	put(to, to->tail, header, wire_header(header, DATA, 0, (u32)size, stream));
	to->tail += HEADER_SIZE + (u32)size;
	return size;
}

long out_flush(struct path *to) {
	while (out_pending(to)) {
		struct iovec parts[2];
		long written = sys_writev(to->out, parts, pieces(to, parts, to->head, to->tail - to->head));
		if (written < 0) return written == -EAGAIN || written == -EINTR ? 0 : written;
		bool all = (u32)written == to->tail - to->head;
		to->head += (u32)written;
		/* A full pipe drains a page at a time: retrying now would send the engine tiny chunks. */
		if (!all) return 0;
	}
	return 0;
}
