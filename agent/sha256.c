/* SHA-256 (FIPS 180-4) and HMAC (RFC 2104) for short messages: the proofs of direct connections. */
#include "agent.h"

enum { BLOCK = 64 };

static const u32 ROUNDS[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static u32 rotate(u32 x, u32 by) { return x >> by | x << (32 - by); }

static void take_block(u32 *state, const u8 *block) {
	u32 w[64];
	for (u32 i = 0; i < 16; i++) w[i] = get_u32(block + 4 * i);
	for (u32 i = 16; i < 64; i++) {
		u32 p = w[i - 15], q = w[i - 2];
		w[i] = w[i - 16] + w[i - 7] + (rotate(p, 7) ^ rotate(p, 18) ^ p >> 3) + (rotate(q, 17) ^ rotate(q, 19) ^ q >> 10);
	}
	u32 a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h = state[7];
	for (u32 i = 0; i < 64; i++) {
		u32 one = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + ROUNDS[i] + w[i];
		u32 two = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
		h = g, g = f, f = e, e = d + one;
		d = c, c = b, b = a, a = one + two;
	}
	u32 after[8] = {a, b, c, d, e, f, g, h};
	for (u32 i = 0; i < 8; i++) state[i] += after[i];
}

/* `bytes` has room for `size` + BLOCK + 9: the padding. */
static void sha256(u8 *bytes, u32 size, u8 *digest) {
	u32 state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
	                0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
	u32 whole = (size + 9 + BLOCK - 1) / BLOCK * BLOCK;
	memset(bytes + size, 0, whole - size);
	bytes[size] = 0x80;
	put_u32(bytes + whole - 4, size * 8);
	for (u32 at = 0; at < whole; at += BLOCK) take_block(state, bytes + at);
	for (u32 i = 0; i < 8; i++) put_u32(digest + 4 * i, state[i]);
}

void hmac_sha256(const u8 *key, u32 key_size, const u8 *message, u32 size, u8 *digest) {
	u8 inner[BLOCK + HMAC_MOST + BLOCK + 9], outer[BLOCK + DIGEST_SIZE + BLOCK + 9];
	for (u32 i = 0; i < BLOCK; i++) {
		u8 byte = i < key_size ? key[i] : 0;
		inner[i] = byte ^ 0x36;
		outer[i] = byte ^ 0x5c;
	}
	memcpy(inner + BLOCK, message, size);
	sha256(inner, BLOCK + size, outer + BLOCK);
	sha256(outer, BLOCK + DIGEST_SIZE, digest);
}
