/* Throws bytes at what reads other people's bytes: the decoder (whole and in pieces must give the same), and the parsers
 * of DNS answers and addresses, and the HMAC. Built with sanitizers; driver.c says how to call it. */
#include "agent.h"
#include "driver.h"

#include <stdlib.h>

static u64 mix(u64 hash, const u8 *bytes, size_t size) {
	for (size_t i = 0; i < size; i++) hash = (hash ^ bytes[i]) * 0x100000001b3u;
	return hash;
}

/* A digest of what the decoder, of the exec stream or of a trunk, made of the input, however it was cut. */
static u64 digest(const u8 *data, size_t size, u32 cut, bool as_trunk) {
	struct decoder decoder = {.trunk = as_trunk};
	struct event event;
	const char *error = NULL;
	u64 hash = 0xcbf29ce484222325u;
	for (size_t from = 0; from < size && !error;) {
		size_t left = cut ? 1 + (cut * 2654435761u + from) % 97 : size;
		if (left > size - from) left = size - from;
		u8 *piece = malloc(left);
		const u8 *at = piece;
		memcpy(piece, data + from, left);
		from += left;
		while (wire_next(&decoder, &at, &left, &event, &error)) {
			u64 head[4] = {event.type, event.stream, event.value, event.udp};
			if (event.type != DATA || event.first) hash = mix(hash, (u8 *)head, sizeof head);
			hash = mix(hash, event.bytes, event.size);
		}
		free(piece);
	}
	return error ? mix(hash, (const u8 *)error, text_size(error)) : hash;
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size) {
	struct address found[8];
	int which;
	u8 *copy = malloc(size ? size : 1);
	memcpy(copy, data, size);
	for (u32 as_trunk = 0; as_trunk < 2; as_trunk++) {
		u64 whole = digest(copy, size, 0, as_trunk);
		for (u32 cut = 1; cut < 4; cut++)
			if (digest(copy, size, cut, as_trunk) != whole) broken("the same however it is cut", cut, as_trunk);
	}
	if (size > 2) dns_parse(copy, (u32)size, (u16)get_u16(copy), &which, found, 8);
	parse_address(copy, (u32)size, found);
	u8 digest_of[DIGEST_SIZE];
	hmac_sha256(copy, lesser((u32)size, 64), copy, lesser((u32)size, HMAC_MOST), digest_of);
	free(copy);
	return 0;
}
