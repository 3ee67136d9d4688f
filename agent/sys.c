/* See sys.h. With AGENT_HOSTED (sanitizer and fuzz builds) libc starts us, ends us and gives the memory. */
#include "sys.h"

int agent_main(int argc, char **argv);

#ifdef AGENT_HOSTED

_Noreturn void exit(int status);
void *malloc(size_t size);
void free(void *piece);

int main(int argc, char **argv) { return agent_main(argc, argv); }

void sys_exit(int status) { exit(status); }

static u32 hosted_chunks;

void *chunk_take(void) {
	void *chunk = hosted_chunks < POOL_LIMIT / CHUNK ? malloc(CHUNK) : NULL;
	hosted_chunks += chunk != NULL;
	return chunk;
}

void chunk_give(void *chunk) {
	hosted_chunks -= chunk != NULL;
	free(chunk);
}

#else

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall start\n\thlt\n");
#else
__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x30, #0\n\tmov x0, sp\n\tbl start\n\tbrk #0\n");
#endif

__attribute__((used)) _Noreturn static void start_at(long *stack) {
	sys_exit(agent_main((int)stack[0], (char **)(stack + 1)));
}
__attribute__((used)) _Noreturn void start(long *stack);
void start(long *stack) { start_at(stack); }

void sys_exit(int status) {
	for (;;) SYS(exit_group, status, 0, 0, 0, 0, 0);
}

void *memcpy(void *restrict to, const void *restrict from, size_t size) {
	typedef u64 __attribute__((may_alias, aligned(1))) word; /* as it lies */
	u8 *t = to;
	const u8 *f = from;
	for (; size >= sizeof(word); size -= sizeof(word), t += sizeof(word), f += sizeof(word)) *(word *)t = *(const word *)f;
	while (size--) *t++ = *f++;
	return to;
}

void *memmove(void *to, const void *from, size_t size) {
	u8 *t = to;
	const u8 *f = from;
	if (t <= f)
		for (size_t i = 0; i < size; i++) t[i] = f[i];
	else
		while (size--) t[size] = f[size];
	return to;
}

void *memset(void *to, int byte, size_t size) {
	u8 *t = to;
	while (size--) *t++ = (u8)byte;
	return to;
}

int memcmp(const void *a, const void *b, size_t size) {
	const u8 *p = a, *q = b;
	for (; size; size--, p++, q++)
		if (*p != *q) return *p - *q;
	return 0;
}

/* Slabs of 256 KiB, cut up; all given back as soon as no piece is in use, so that one busy hour costs nothing after. */
enum { SLAB = 256 * 1024 };
static void *slabs[POOL_LIMIT / SLAB];
static u32 slab_count, chunks_used;
static void **free_chunks;

void *chunk_take(void) {
	if (!free_chunks) {
		long at = slab_count < POOL_LIMIT / SLAB ? sys_mmap(SLAB) : -ENOMEM;
		if (at < 0 && at > -4096) return NULL;
		slabs[slab_count++] = (void *)at;
		for (long offset = SLAB - CHUNK; offset >= 0; offset -= CHUNK) {
			void **chunk = (void **)(at + offset);
			*chunk = free_chunks;
			free_chunks = chunk;
		}
	}
	void **chunk = free_chunks;
	free_chunks = *chunk;
	chunks_used++;
	return chunk;
}

void chunk_give(void *chunk) {
	*(void **)chunk = free_chunks;
	free_chunks = chunk;
	if (--chunks_used == 0 && slab_count > 1) {
		while (slab_count) sys_munmap(slabs[--slab_count], SLAB);
		free_chunks = NULL;
	}
}

#endif

static u64 clock_us(int clock) {
	struct __kernel_timespec t;
	SYS(clock_gettime, clock, &t, 0, 0, 0, 0);
	return (u64)t.tv_sec * 1000000 + (u64)t.tv_nsec / 1000;
}

u64 now_ms(void) { return clock_us(1 /* CLOCK_MONOTONIC */) / 1000; }
u64 cpu_us(void) { return clock_us(2 /* CLOCK_PROCESS_CPUTIME_ID */); }

size_t text_size(const char *text) {
	size_t size = 0;
	while (text[size]) size++;
	return size;
}

size_t parse_number(const u8 *text, size_t size, u64 *number) {
	size_t i = 0;
	*number = 0;
	for (; i < size && text[i] >= '0' && text[i] <= '9'; i++) {
		if (i == 19) return 0;
		*number = *number * 10 + (u64)(text[i] - '0');
	}
	return i;
}
