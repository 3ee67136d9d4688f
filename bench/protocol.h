/* What the benchmark's clients (load.c) and its server (server.c) say to each other.
 *
 * A message has 64 bytes: what is wanted, a decimal number of 15 digits, and 48 bytes that the answer brings back.
 *   k  answer with the same 64 bytes and stay      o  answer and close, as HTTP/1.0 does
 *   g  send so many bytes                          p  take so many bytes, then answer
 *   l  listen on that port, answer with the moment after listen() returned (CLOCK_MONOTONIC, ns)
 *   c  close that listener, answer */
#ifndef BENCH_PROTOCOL_H
#define BENCH_PROTOCOL_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MESSAGE = 64, NUMBER = 15, BLOCK = 256 * 1024 };

static inline uint64_t monotonic_ns(void) {
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void put_message(char *message, char kind, unsigned long long number) {
	char text[32];
	snprintf(text, sizeof text, "%c%015llu", kind, number % 1000000000000000ull);
	memcpy(message, text, 1 + NUMBER);
}

static inline unsigned long long get_number(const char *message) {
	char text[NUMBER + 1];
	memcpy(text, message + 1, NUMBER);
	text[NUMBER] = 0;
	return strtoull(text, NULL, 10);
}

#endif
