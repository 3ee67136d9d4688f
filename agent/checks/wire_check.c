/* Shows to the tests what wire.c makes of bytes, and which bytes it makes: hexadecimal lines in, lines out.
 *
 * "decode HEX HEX …": one decoder is fed the pieces; one line for each event (DATA in parts, as it comes), then "error
 * WORD" or "ok"; "decode-trunk" does the same as on a trunk. "header TYPE FLAGS SIZE STREAM", "hello WINDOW" and "entry TRANSPORT FAMILY PORT UID INODE ADDRESS":
 * the bytes. */
#include "wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static u8 bytes[1 << 20];

static size_t from_hex(const char *text, u8 *to) {
	size_t size = 0;
	unsigned value;
	for (; sscanf(text, "%2x", &value) == 1; text += 2) to[size++] = (u8)value;
	return size;
}

static void show_hex(const u8 *from, size_t size) {
	for (size_t i = 0; i < size; i++) printf("%02x", from[i]);
	printf("\n");
}

static void show(const struct event *e) {
	printf("%d %u %u %d %d ", e->type, e->stream, e->value, e->udp, e->type == DATA ? e->last : 1);
	show_hex(e->bytes, e->size);
}

static void decode(char *words, bool trunk) {
	struct decoder decoder = {.trunk = trunk};
	const char *error = NULL;
	for (char *word = strtok(words, " \n"); word && !error; word = strtok(NULL, " \n")) {
		size_t left = from_hex(word, bytes);
		/* A block of its own, so that the sanitizer sees a byte too far. */
		u8 *piece = malloc(left ? left : 1);
		const u8 *at = piece;
		struct event event;
		memcpy(piece, bytes, left);
		while (wire_next(&decoder, &at, &left, &event, &error)) show(&event);
		free(piece);
	}
	printf(error ? "error %s\n" : "ok\n", error);
}

int main(void) {
	static char line[4 << 20];
	while (fgets(line, sizeof line, stdin)) {
		unsigned type, flags, size, stream, window, transport, family, port, uid;
		unsigned long long inode;
		char address[64] = "";
		u8 frame[64], raw[32] = {0};
		if (!strncmp(line, "decode ", 7)) {
			decode(line + 7, false);
		} else if (!strncmp(line, "decode-trunk ", 13)) {
			decode(line + 13, true);
		} else if (sscanf(line, "header %u %u %u %u", &type, &flags, &size, &stream) == 4) {
			show_hex(frame, wire_header(frame, type, flags, size, stream));
		} else if (sscanf(line, "hello %u", &window) == 1) {
			show_hex(frame, wire_hello(frame, window));
		} else if (sscanf(line, "entry %u %u %u %u %llu %40s", &transport, &family, &port, &uid, &inode, address) == 6) {
			from_hex(address, raw);
			show_hex(frame, wire_entry(frame, transport, family, port, uid, inode, raw));
		} else {
			return 1;
		}
		fflush(stdout);
	}
	return 0;
}
