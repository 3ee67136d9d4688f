/* The protocol's bytes (SPEC.md, "Agent protocol"): decode the host's frames, encode the agent's. No I/O, no globals. */
#ifndef AGENT_WIRE_H
#define AGENT_WIRE_H

#include "sys.h"

enum frame_type {
	HELLO = 0, /* not on the wire: the decoder's event for the host's hello */
	OPEN = 1,
	OPENED,
	REFUSED,
	DATA,
	END,
	RESET,
	CREDIT,
	PING,
	PONG,
	WATCH,
	SNAPSHOT,
	PROCESS,
	BYE,
	LISTEN,
	LISTENING,
	DIRECT,
	MOVE,
	TRUNK,
	SIGNED_OPEN,
	NETWORK,
};

enum {
	PROTOCOL_VERSION = 1,
	HELLO_SIZE = 16,
	HEADER_SIZE = 8,
	MAX_PAYLOAD = 65535,
	MIN_WINDOW = 65535,      /* a datagram of any size fits in an untouched window */
	MAX_WINDOW = 16 << 20,   /* bounds what one stalled stream can cost */
	MAX_CREDIT = 0x7fffffff, /* sums stay within 31 bits */
	MAX_ERRNO = 4095,
	MAX_ADDRESSES = 8,
	MAX_NAME = 253,
	MAX_OPEN = 4 + MAX_ADDRESSES * (2 + MAX_NAME),
	ENTRY_SIZE = 32,
	SNAPSHOT_MORE = 1,
	SNAPSHOT_CUT = 2,
	SECRET_SIZE = 16,
	TOKEN_SIZE = 16,
	TAG_SIZE = 16,
	MAX_NETWORK = 128,
	MAX_SIGNED_OPEN = TAG_SIZE + 60, /* number and OPEN fit one HMAC */
};

enum { TRANSPORT_TCP = 6, TRANSPORT_UDP = 17 };

struct decoder {
	bool greeted;
	bool trunk;    /* reads a trunk: no hello, other frames allowed */
	u32 have;      /* bytes in `frame` */
	u32 data_left; /* of the DATA frame being passed on */
	bool data_first;
	u32 data_stream;
	u8 frame[HEADER_SIZE + MAX_OPEN];
};

/* `bytes` point into the input or the decoder and are valid until the next call. DATA comes in parts, as it arrives. */
struct event {
	enum frame_type type;
	u32 stream;
	u32 value; /* HELLO: window, RESET: errno, CREDIT: bytes, WATCH: interval in ms */
	const u8 *bytes;
	u32 size;
	bool first, last; /* DATA: this part begins, ends the frame */
	bool udp;         /* WATCH */
};

/* Takes bytes from *input; true: *event is set, call again; false: all input is used, or *error says what is wrong. */
bool wire_next(struct decoder *decoder, const u8 **input, size_t *size, struct event *event, const char **error);

u32 get_u16(const u8 *from);
u32 get_u32(const u8 *from);
void put_u16(u8 *to, u32 value);
void put_u32(u8 *to, u32 value);
void put_u64(u8 *to, u64 value);

/* Each writes to `to` and returns the size. */
u32 wire_hello(u8 *to, u32 window);
u32 wire_header(u8 *to, enum frame_type type, u32 flags, u32 size, u32 stream);
u32 wire_entry(u8 *to, u32 transport, u32 family, u32 port, u32 uid, u64 inode, const u8 *address);

#endif
