/* Throws bytes at what reads other people's bytes: the decoder (whole and in pieces must give the same), and the parsers
 * of DNS answers and addresses, and the HMAC. Built with sanitizers; a seed, the time and mutations of the corpus are all it takes.
 *
 *   fuzz SECONDS [FILE]...
 *
 * With -DAGENT_LIBFUZZER it is a libFuzzer target instead. An input that fails is written to ./crash. */
#include "agent.h"

#include <stdio.h>
#include <stdlib.h>

enum { LARGEST = 70000, FILES = 512 };

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

int LLVMFuzzerTestOneInput(const u8 *data, size_t size);
int LLVMFuzzerTestOneInput(const u8 *data, size_t size) {
	struct address found[8];
	int which;
	u8 *copy = malloc(size ? size : 1);
	memcpy(copy, data, size);
	for (u32 as_trunk = 0; as_trunk < 2; as_trunk++) {
		u64 whole = digest(copy, size, 0, as_trunk);
		for (u32 cut = 1; cut < 4; cut++)
			if (digest(copy, size, cut, as_trunk) != whole) abort();
	}
	if (size > 2) dns_parse(copy, (u32)size, (u16)get_u16(copy), &which, found, 8);
	parse_address(copy, (u32)size, found);
	u8 digest_of[DIGEST_SIZE];
	hmac_sha256(copy, lesser((u32)size, 64), copy, lesser((u32)size, HMAC_MOST), digest_of);
	free(copy);
	return 0;
}

#ifndef AGENT_LIBFUZZER
static u64 seed = 0x9e3779b97f4a7c15u;

static u32 random_below(u32 limit) {
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (u32)((seed >> 20) % limit);
}

static u8 data[LARGEST];
static const u8 *last;
static size_t last_size;

/* Called by the sanitizers before they end the process. */
void __asan_on_error(void);
void __asan_on_error(void) {
	FILE *file = fopen("crash", "wb");
	if (file) fwrite(last, 1, last_size, file), fclose(file);
}

int agent_main(int argc, char **argv);
int agent_main(int argc, char **argv) {
	static struct {
		u8 *bytes;
		size_t size;
	} corpus[FILES];
	u32 files = 0;
	u64 until = now_ms() + (u64)(argc > 1 ? atol(argv[1]) : 10) * 1000, runs = 0;
	for (int i = 2; i < argc && files < FILES; i++) {
		long size = read_file(argv[i], data, sizeof data);
		if (size <= 0) continue;
		corpus[files].bytes = malloc((size_t)size);
		memcpy(corpus[files].bytes, data, (size_t)size);
		corpus[files++].size = (size_t)size;
	}
	seed ^= now_ms();
	for (; now_ms() < until; runs++) {
		last_size = random_below(300);
		for (size_t i = 0; i < last_size; i++) data[i] = (u8)random_below(256);
		if (files && random_below(8)) {
			u32 pick = random_below(files);
			last_size = corpus[pick].size;
			memcpy(data, corpus[pick].bytes, last_size);
		}
		for (u32 change = random_below(6); change && last_size; change--) {
			size_t at = random_below((u32)last_size);
			switch (random_below(4)) {
			case 0: data[at] = (u8)random_below(256); break;
			case 1: data[at] ^= (u8)(1u << random_below(8)); break;
			case 2: last_size = at; break;
			default:
				if (last_size < LARGEST) memmove(data + at + 1, data + at, last_size++ - at);
			}
		}
		last = data;
		LLVMFuzzerTestOneInput(data, last_size);
	}
	printf("fuzz: %llu inputs from %u seeds, nothing found\n", (unsigned long long)runs, files);
	return 0;
}
#endif
