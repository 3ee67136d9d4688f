/* See wire.h and SPEC.md, "Agent protocol". */
#include "wire.h"

static const u8 MAGIC[8] = {0x00, 0xff, 0x61, 0x66, 0x0d, 0x0a, 0x1a, 0x00};

u32 get_u16(const u8 *from) { return (u32)from[0] << 8 | from[1]; }
u32 get_u32(const u8 *from) { return get_u16(from) << 16 | get_u16(from + 2); }

void put_u16(u8 *to, u32 value) {
	to[0] = (u8)(value >> 8);
	to[1] = (u8)value;
}

void put_u32(u8 *to, u32 value) {
	put_u16(to, value >> 16);
	put_u16(to + 2, value);
}

void put_u64(u8 *to, u64 value) {
	put_u32(to, (u32)(value >> 32));
	put_u32(to + 4, (u32)value);
}

u32 wire_hello(u8 *to, u32 window) {
	memcpy(to, MAGIC, sizeof MAGIC);
	put_u16(to + 8, PROTOCOL_VERSION);
	put_u16(to + 10, 0);
	put_u32(to + 12, window);
	return HELLO_SIZE;
}

u32 wire_header(u8 *to, enum frame_type type, u32 flags, u32 size, u32 stream) {
	to[0] = (u8)type;
	to[1] = (u8)flags;
	put_u16(to + 2, size);
	put_u32(to + 4, stream);
	return HEADER_SIZE;
}

u32 wire_entry(u8 *to, u32 transport, u32 family, u32 port, u32 uid, u64 inode, const u8 *address) {
	to[0] = (u8)transport;
	to[1] = (u8)family;
	put_u16(to + 2, port);
	put_u32(to + 4, uid);
	put_u64(to + 8, inode);
	memset(to + 16, 0, 16);
	memcpy(to + 16, address, family == 4 ? 4 : 16);
	return ENTRY_SIZE;
}

/* For each frame: its size, the paths that it may come on, and whether it belongs to a stream. Other types are not for the
 * agent. */
enum { EXEC = 1, TRUNKS = 2, BOTH = EXEC | TRUNKS };
static const struct {
	u16 min, max;
	u8 where;
	bool of_stream;
} RULES[] = {
	[OPEN] = {4 + 3, MAX_OPEN, EXEC, true},
	[DATA] = {0, MAX_PAYLOAD, BOTH, true},
	[END] = {0, 0, BOTH, true},
	[RESET] = {4, 4, BOTH, true},
	[CREDIT] = {4, 4, BOTH, true},
	[PING] = {8, 8, BOTH, false},
	[PONG] = {8, 8, EXEC, false},
	[WATCH] = {5, 5, EXEC, false},
	[LISTEN] = {0, SECRET_SIZE + 1 + 16, EXEC, false},
	[DIRECT] = {TOKEN_SIZE, TOKEN_SIZE, EXEC, true},
	[MOVE] = {0, 0, BOTH, true},
	[TRUNK] = {0, TOKEN_SIZE, EXEC, false},
	[SIGNED_OPEN] = {TAG_SIZE + 4 + 3, MAX_SIGNED_OPEN, TRUNKS, true},
};

static const char *check_header(const u8 *header, bool trunk) {
	u32 type = header[0], size = get_u16(header + 2);
	if (type >= sizeof RULES / sizeof RULES[0] || !(RULES[type].where & (trunk ? TRUNKS : EXEC))) return "frame type";
	if (size < RULES[type].min || size > RULES[type].max) return "frame length";
	if (header[1]) return "frame flags";
	if ((get_u32(header + 4) != 0) != RULES[type].of_stream) return "stream number";
	return NULL;
}

static const char *check_open(const u8 *payload, u32 size) {
	u32 at = 4;
	if (payload[0] != TRANSPORT_TCP && payload[0] != TRANSPORT_UDP) return "transport";
	if (!get_u16(payload + 1)) return "port";
	if (!payload[3] || payload[3] > MAX_ADDRESSES) return "number of addresses";
	for (u32 i = 0; i < payload[3]; i++) {
		if (size - at < 2) return "address";
		u32 kind = payload[at], length = payload[at + 1];
		bool right = kind == 4 ? length == 4 : kind == 6 ? length == 16 : kind == 0 && length && length <= MAX_NAME;
		if (!right || size - at - 2 < length) return "address";
		at += 2 + length;
	}
	return at == size ? NULL : "address";
}

static const char *check_payload(struct event *event) {
	switch (event->type) {
	case OPEN: return check_open(event->bytes, event->size);
	case SIGNED_OPEN: return check_open(event->bytes + TAG_SIZE, event->size - TAG_SIZE);
	case TRUNK: return event->size && event->size != TOKEN_SIZE ? "frame length" : NULL;
	case RESET: event->value = get_u32(event->bytes); return event->value > MAX_ERRNO ? "errno" : NULL;
	case CREDIT:
		event->value = get_u32(event->bytes);
		return !event->value || event->value > MAX_CREDIT ? "credit" : NULL;
	case WATCH:
		event->value = get_u32(event->bytes);
		event->udp = event->bytes[4] & 1;
		return event->bytes[4] > 1 ? "watch flags" : NULL;
	case LISTEN: {
		if (!event->size) return NULL;
		if (event->size < SECRET_SIZE + 1 + 4) return "frame length";
		u32 kind = event->bytes[SECRET_SIZE], length = event->size - SECRET_SIZE - 1;
		return (kind == 4 && length == 4) || (kind == 6 && length == 16) ? NULL : "address";
	}
	default: return NULL;
	}
}

static const char *check_hello(const u8 *hello, u32 have) {
	if (memcmp(hello, MAGIC, lesser(have, sizeof MAGIC))) return "magic";
	if (have < HELLO_SIZE) return NULL;
	if (get_u16(hello + 8) != PROTOCOL_VERSION) return "version";
	if (get_u16(hello + 10)) return "hello flags";
	u32 window = get_u32(hello + 12);
	return window < MIN_WINDOW || window > MAX_WINDOW ? "window" : NULL;
}

/* Collects up to `need` bytes of the frame; false if there are not enough yet. */
static bool collect(struct decoder *decoder, const u8 **input, size_t *size, u32 need) {
	u32 missing = need - decoder->have;
	u32 take = *size < missing ? (u32)*size : missing;
	memcpy(decoder->frame + decoder->have, *input, take);
	decoder->have += take;
	*input += take;
	*size -= take;
	return decoder->have == need;
}

static bool pass_data(struct decoder *decoder, const u8 **input, size_t *size, struct event *event) {
	u32 take = *size < decoder->data_left ? (u32)*size : decoder->data_left;
	*event = (struct event){.type = DATA, .stream = decoder->data_stream, .bytes = *input, .size = take};
	event->first = decoder->data_first;
	decoder->data_first = false;
	decoder->data_left -= take;
	event->last = !decoder->data_left;
	*input += take;
	*size -= take;
	return true;
}

bool wire_next(struct decoder *decoder, const u8 **input, size_t *size, struct event *event, const char **error) {
	*error = NULL;
	if (decoder->data_left) return *size && pass_data(decoder, input, size, event);
	if (!decoder->greeted && !decoder->trunk) {
		bool whole = collect(decoder, input, size, HELLO_SIZE);
		*error = check_hello(decoder->frame, decoder->have);
		if (*error || !whole) return false;
		decoder->greeted = true;
		decoder->have = 0;
		*event = (struct event){.type = HELLO, .value = get_u32(decoder->frame + 12)};
		return true;
	}
	const u8 *header = decoder->frame;
	if (decoder->have < HEADER_SIZE) {
		if (!collect(decoder, input, size, HEADER_SIZE)) return false;
		if ((*error = check_header(header, decoder->trunk))) return false;
		if (header[0] == DATA) {
			decoder->have = 0;
			decoder->data_first = true;
			decoder->data_left = get_u16(header + 2);
			decoder->data_stream = get_u32(header + 4);
			/* An empty datagram is passed on at once; other frames may have no byte here yet. */
			return (*size || !decoder->data_left) && pass_data(decoder, input, size, event);
		}
	}
	u32 length = get_u16(header + 2);
	if (!collect(decoder, input, size, HEADER_SIZE + length)) return false;
	decoder->have = 0;
	*event = (struct event){.type = header[0], .stream = get_u32(header + 4), .bytes = header + 8, .size = length};
	return !(*error = check_payload(event));
}
