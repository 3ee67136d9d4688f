/* Drives a fuzz target: inputs of the corpus and mutations of them; what reaches something new in the target is kept.
 *
 *   PROGRAM [--seed N] [--runs N] SECONDS FOUND FILE...      fuzz; FOUND is a folder for inputs that reach something new
 *   PROGRAM --minimize FOLDER FILE...                        the shortest that reach all that these files reach
 *   PROGRAM --once FILE...                                   run each
 *
 * Coverage is that of -fsanitize-coverage=trace-pc (gcc, clang): pairs of places and how often, as AFL counts them. The
 * same seed gives the same inputs. An input that fails is written to FOUND.crash; exit status 1, or that of a sanitizer. */
#include "driver.h"

#include <sanitizer/common_interface_defs.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MAP = 1 << 16, LARGEST = 1 << 14, FILES = 1 << 14, HANG_S = 20 };

struct input {
	uint8_t *bytes;
	size_t size;
};

/* On the heap: the target's start_afresh() leaves it alone. */
struct driver {
	uint8_t hits[MAP], seen[MAP]; /* of pairs of places */
	uintptr_t before;
	uint64_t seed;
	struct input inputs[FILES];
	uint32_t count;
	uint8_t data[LARGEST];
	size_t size;
	char crash[4096];
	uint8_t *image;
};
static struct driver *d;

void __sanitizer_cov_trace_pc(void);
void __sanitizer_cov_trace_pc(void) {
	if (!d) return;
	/* From the driver's own place on, so that it does not matter where the program was loaded. */
	uintptr_t here = (uintptr_t)__builtin_return_address(0) - (uintptr_t)start_afresh;
	here = (here ^ here >> 16) * 0x9e3779b1u;
	uint8_t *hit = &d->hits[(here ^ d->before) % MAP];
	if (*hit < 255) ++*hit;
	d->before = here >> 1;
}

static void keep_crash(void) {
	FILE *file = fopen(d->crash, "wb");
	if (file) fwrite(d->data, 1, d->size, file), fclose(file);
}

void broken(const char *law, long a, long b) {
	fprintf(stderr, "broken: %s (%ld, %ld)\n", law, a, b);
	fflush(stderr);
	__sanitizer_print_stack_trace();
	keep_crash();
	_exit(1);
}

/* The runtime of UBSan has no callback of its own where there are two. */
const char *__ubsan_default_options(void);
const char *__ubsan_default_options(void) { return "abort_on_error=1:print_stacktrace=1"; }

static void aborted(int signal_number) {
	(void)signal_number;
	keep_crash();
}

static void hangs(int signal_number) { broken("an input takes too long", HANG_S, signal_number); }

extern char __data_start[], _end[]; /* of the linker's: initialised and zeroed variables, one after the other */

/* By words, without memcpy: between the variables lies what a sanitizer watches. */
void start_afresh(void) {
	uint64_t *from = (uint64_t *)((uintptr_t)__data_start & ~(uintptr_t)7), *image = (uint64_t *)d->image;
	size_t words = (size_t)((uint64_t *)_end - from);
	if (image) {
		for (size_t i = 0; i < words; i++)
			if (from[i] != image[i]) from[i] = image[i];
		return;
	}
	image = malloc(words * sizeof *image);
	for (size_t i = 0; i < words; i++) image[i] = from[i];
	d->image = (uint8_t *)image;
}

/* Whether it reaches something that none before it reached; `how_often`: other numbers of times are something new. */
static int is_new(const uint8_t *data, size_t size, int how_often) {
	int found = 0;
	if (data != d->data) memcpy(d->data, data, size);
	d->size = size;
	memset(d->hits, 0, sizeof d->hits);
	d->before = 0;
	alarm(HANG_S);
	/* A copy of its own, so that a sanitizer sees a byte too far. */
	uint8_t *copy = malloc(size ? size : 1);
	memcpy(copy, d->data, size);
	LLVMFuzzerTestOneInput(copy, size);
	free(copy);
	for (size_t i = 0; i < MAP; i++) {
		uint64_t eight;
		if (i % 8 == 0 && (memcpy(&eight, d->hits + i, 8), !eight)) {
			i += 7;
			continue;
		}
		uint8_t n = d->hits[i], step = n < 4 ? n : n < 8 ? 4 : n < 16 ? 5 : n < 32 ? 6 : n < 128 ? 7 : 8;
		if (n && !how_often) step = 1;
		if (!n || d->seen[i] & 1u << (step - 1)) continue;
		d->seen[i] |= (uint8_t)(1u << (step - 1));
		found = 1;
	}
	return found;
}

static uint32_t below(uint32_t limit) {
	d->seed ^= d->seed << 13;
	d->seed ^= d->seed >> 7;
	d->seed ^= d->seed << 17;
	return (uint32_t)((d->seed >> 20) % limit);
}

static void insert(size_t at, const uint8_t *bytes, size_t size) {
	if (d->size + size > LARGEST) return;
	uint8_t held[256];
	memcpy(held, bytes, size);
	memmove(d->data + at + size, d->data + at, d->size - at);
	memcpy(d->data + at, held, size);
	d->size += size;
}

static size_t lesser(size_t a, size_t b) { return a < b ? a : b; }

/* Into d->data. */
static void mutate(void) {
	d->size = 0;
	if (d->count && below(20)) {
		/* The newest more often: they are what is at the edge. */
		uint32_t pick = below(2) ? below(d->count) : d->count - 1 - below(1 + d->count / 8);
		d->size = d->inputs[pick].size;
		memcpy(d->data, d->inputs[pick].bytes, d->size);
	}
	if (!d->size)
		for (d->size = 1 + below(200); d->size > 1 && below(200);) d->data[--d->size] = (uint8_t)below(256);
	for (uint32_t change = 1 + below(8); change; change--) {
		size_t at = below((uint32_t)d->size + 1), left = d->size - at, run = lesser(left, 1 + below(below(4) ? 8 : 128));
		const struct input *other = d->count ? &d->inputs[below(d->count)] : NULL;
		uint8_t fresh[8];
		for (size_t i = 0; i < sizeof fresh; i++) fresh[i] = (uint8_t)below(256);
		switch (below(8)) {
		case 0:
		case 1:
			if (left) d->data[at] = fresh[0];
			break;
		case 2:
			if (left) d->data[at] ^= (uint8_t)(1u << (fresh[0] & 7));
			break;
		case 3:
			memmove(d->data + at, d->data + at + run, left - run);
			d->size -= run;
			break;
		case 4: insert(at, d->data + at, run); break;
		case 5: insert(at, fresh, 1 + fresh[0] % sizeof fresh); break;
		case 6:
			if (left) d->data[at] = (uint8_t)(d->data[at] + (fresh[0] & 1 ? 1 : 255));
			break;
		default:
			if (!other || !other->size) break;
			run = below((uint32_t)other->size);
			insert(at, other->bytes + run, lesser(other->size - run, 1 + below(128)));
		}
	}
}

static void remember(const uint8_t *bytes, size_t size) {
	if (d->count == FILES) return;
	struct input *input = &d->inputs[d->count++];
	input->bytes = malloc(size ? size : 1);
	memcpy(input->bytes, bytes, input->size = size);
}

static void load(int argc, char **argv) {
	for (int i = 0; i < argc; i++) {
		static uint8_t bytes[LARGEST];
		FILE *file = fopen(argv[i], "rb");
		if (!file) continue;
		remember(bytes, fread(bytes, 1, sizeof bytes, file));
		fclose(file);
	}
}

/* Named by its content. */
static void write_input(const char *folder, const uint8_t *bytes, size_t size) {
	char path[4096];
	uint64_t hash = 0xcbf29ce484222325u;
	for (size_t i = 0; i < size; i++) hash = (hash ^ bytes[i]) * 0x100000001b3u;
	snprintf(path, sizeof path, "%s/%016llx", folder, (unsigned long long)hash);
	FILE *file = fopen(path, "wb");
	if (file) fwrite(bytes, 1, size, file), fclose(file);
}

static int by_size(const void *a, const void *b) {
	const struct input *x = a, *y = b;
	if (x->size != y->size) return x->size < y->size ? -1 : 1;
	return memcmp(x->bytes, y->bytes, x->size);
}

static int minimize(const char *folder) {
	uint32_t kept = 0;
	qsort(d->inputs, d->count, sizeof *d->inputs, by_size);
	for (uint32_t i = 0; i < d->count; i++) {
		if (!is_new(d->inputs[i].bytes, d->inputs[i].size, 0)) continue;
		write_input(folder, d->inputs[i].bytes, d->inputs[i].size);
		kept++;
	}
	printf("fuzz: %u of %u inputs kept\n", kept, d->count);
	return 0;
}

static uint32_t places(void) {
	uint32_t sum = 0;
	for (size_t i = 0; i < MAP; i++) sum += d->seen[i] != 0;
	return sum;
}

static int fuzz(double seconds, unsigned long long runs, const char *found) {
	unsigned long long done = 0, seed = d->seed;
	snprintf(d->crash, sizeof d->crash, "%s.crash", found);
	time_t until = time(NULL) + (time_t)(seconds + 0.5);
	uint32_t seeds = d->count;
	for (uint32_t i = 0; i < seeds; i++) is_new(d->inputs[i].bytes, d->inputs[i].size, 1);
	for (; runs ? done < runs : time(NULL) < until; done++) {
		mutate();
		if (!is_new(d->data, d->size, 1)) continue;
		remember(d->data, d->size);
		write_input(found, d->data, d->size);
	}
	printf("fuzz: %llu inputs from %u seeds, %u places, seed %llu, nothing found\n", done, seeds, places(), seed);
	return 0;
}

/* sys.c's main calls agent_main: it is this one by the linker's --wrap, where the agent's own is there, too. */
int __wrap_agent_main(int argc, char **argv);
int __wrap_agent_main(int argc, char **argv) {
	unsigned long long runs = 0;
	d = calloc(1, sizeof *d);
	d->seed = (unsigned long long)time(NULL) * 0x9e3779b97f4a7c15u | 1;
	snprintf(d->crash, sizeof d->crash, "crash");
	__sanitizer_set_death_callback(keep_crash);
	signal(SIGALRM, hangs);
	signal(SIGABRT, aborted);
	for (; argc > 2 && (!strcmp(argv[1], "--seed") || !strcmp(argv[1], "--runs")); argc -= 2, argv += 2)
		*(argv[1][2] == 's' ? (unsigned long long *)&d->seed : &runs) = strtoull(argv[2], NULL, 10);
	if (argc < 3) return fprintf(stderr, "usage: [--seed N] [--runs N] SECONDS FOUND FILE...\n"), 2;
	load(argc - 3, argv + 3);
	if (!strcmp(argv[1], "--minimize")) return minimize(argv[2]);
	if (strcmp(argv[1], "--once")) return fuzz(strtod(argv[1], NULL), runs, argv[2]);
	for (load(1, argv + 2); d->count; d->count--) is_new(d->inputs[d->count - 1].bytes, d->inputs[d->count - 1].size, 1);
	return 0;
}
