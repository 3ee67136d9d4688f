/* The trunk: a TCP connection from the host that carries many streams, like stdin and stdout, past the engine.
 *
 * It arrives at the listener for direct connections, with its own token (TRUNK), and replaces the one before. From then on
 * both sides send frames there. Someone who can change the network's traffic must not open connections here: every OPEN is
 * signed, and its stream number is larger than all before it. A broken trunk ends its own streams only. */
#include "streams.h"

static u8 ring[PATH_RING], datagram[MAX_PAYLOAD];
struct path trunk_path = {.in = -1, .out = -1, .ring = ring, .datagram = datagram};
static bool expected;
static u8 token[TOKEN_SIZE], key[DIGEST_SIZE];
static u32 last_number, mask;

void trunk_end(void) {
	if (trunk_path.out < 0) return;
	int fd = trunk_path.out;
	trunk_path.in = trunk_path.out = -1;
	trunk_path.head = trunk_path.tail = 0;
	streams_cut(&trunk_path);
	sys_close(fd); /* closing removes it from epoll */
}

const char *trunk_expect(const u8 *bytes, u32 size) {
	if (!auth_asked()) return "trunk before listen";
	trunk_end();
	expected = size != 0;
	memcpy(token, bytes, size);
	return NULL;
}

bool trunk_takes(const u8 *brought) { return expected && !differ(token, brought, sizeof token); }

static bool watch_trunk(u32 wanted) {
	if (wanted == mask) return true;
	if (!watch(trunk_path.out, mask != 0, wanted, TRUNK_KEY)) return false;
	mask = wanted;
	return true;
}

bool trunk_start(int fd) {
	expected = false;
	last_number = mask = 0;
	auth_sign("autoforward trunk key", token, sizeof token, key);
	trunk_path.decoder = (struct decoder){.trunk = true};
	trunk_path.in = trunk_path.out = fd;
	if (watch_trunk(EPOLLIN)) return true;
	trunk_path.in = trunk_path.out = -1;
	return false;
}

bool trunk_signed(const struct event *e) {
	u8 message[HMAC_MOST], tag[DIGEST_SIZE];
	u32 size = e->size - TAG_SIZE;
	if (e->stream <= last_number) return false;
	put_u32(message, e->stream);
	memcpy(message + 4, e->bytes + TAG_SIZE, size);
	hmac_sha256(key, sizeof key, message, 4 + size, tag);
	if (differ(tag, e->bytes, TAG_SIZE)) return false;
	last_number = e->stream;
	return true;
}

void trunk_flush(void) {
	if (trunk_path.out < 0) return;
	if (out_flush(&trunk_path) < 0 || !watch_trunk(EPOLLIN | (out_pending(&trunk_path) ? EPOLLOUT : 0))) trunk_end();
}
