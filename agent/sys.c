/* See sys.h. With AGENT_HOSTED (sanitizer and fuzz builds) libc starts and ends the process and allocates memory. */
#include "sys.h"

int agent_main(int argc, char **argv);

u64 now;
#if defined(AGENT_HOSTED) && !defined(AGENT_SIMULATED)
bool may_be_dumped = true; /* a leak sanitizer inspects its own process */
#else
bool may_be_dumped;
#endif

void stay_private(void) {
	if (!may_be_dumped) SYS(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0, 0);
}

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
enum { RELATIVE = 8 }; /* R_X86_64_RELATIVE */
#elif defined(__riscv)
__asm__(".globl _start\n_start:\n\t.option push\n\t.option norelax\n\tlla gp, __global_pointer$\n\t.option pop\n"
        "\tmv a0, sp\n\tandi sp, sp, -16\n\tcall start\n\tebreak\n");
enum { RELATIVE = 3 }; /* R_RISCV_RELATIVE */
#else
__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x30, #0\n\tmov x0, sp\n\tbl start\n\tbrk #0\n");
enum { RELATIVE = 1027 }; /* R_AARCH64_RELATIVE */
#endif

/* Compared by the compiler at the end of functions with arrays. */
__attribute__((used, visibility("hidden"))) unsigned long __stack_chk_guard;
__attribute__((used)) _Noreturn void __stack_chk_fail(void);
void __stack_chk_fail(void) {
	static const char words[] = "agent: the stack is broken\n";
	sys_write(2, words, sizeof words - 1);
	sys_exit(EXIT_BROKEN);
}

#ifdef __PIC__

extern const Elf64_Ehdr __ehdr_start __attribute__((visibility("hidden")));
extern const Elf64_Dyn _DYNAMIC[] __attribute__((visibility("hidden")));

/* The agent is its own loader, at a random address: relocate pointers in data, then make what is no longer written
 * read-only. */
static void relocate(unsigned long page) {
	unsigned long base = (unsigned long)&__ehdr_start, size = 0;
	const Elf64_Rela *at = NULL;
	for (const Elf64_Dyn *d = _DYNAMIC; d->d_tag != DT_NULL; d++) {
		if (d->d_tag == DT_RELA) at = (const Elf64_Rela *)(base + d->d_un.d_ptr);
		if (d->d_tag == DT_RELASZ) size = d->d_un.d_val;
	}
	for (const Elf64_Rela *end = at + size / sizeof *at; at < end; at++)
		if (ELF64_R_TYPE(at->r_info) == RELATIVE) *(unsigned long *)(base + at->r_offset) = base + (unsigned long)at->r_addend;
	const Elf64_Phdr *part = (const Elf64_Phdr *)(base + __ehdr_start.e_phoff);
	for (u32 i = 0; i < __ehdr_start.e_phnum; i++, part++) {
		unsigned long from = (base + part->p_vaddr) & -page, to = (base + part->p_vaddr + part->p_memsz) & -page;
		if (part->p_type == PT_GNU_RELRO && from < to) SYS(mprotect, from, to - from, PROT_READ, 0, 0, 0);
	}
}

#else /* a tool chain without -static-pie */
static void relocate(unsigned long page) { (void)page; }
#endif

__attribute__((used)) _Noreturn void start(long *stack);
void start(long *stack) { /* no array, and does not return: the guard may change here */
	unsigned long page = 4096;
	const void *random = NULL;
	long *word = stack + 1 + stack[0] + 1;
	while (*word++) continue; /* skip the environment */
	for (; *word != AT_NULL; word += 2) {
		if (*word == AT_PAGESZ) page = (unsigned long)word[1];
		if (*word == AT_RANDOM) random = (const void *)word[1];
	}
	relocate(page);
	if (random) __stack_chk_guard = *(const unsigned long *)random & ~0xFFUL; /* the zero byte ends strings copied over it */
	sys_exit(agent_main((int)stack[0], (char **)(stack + 1)));
}

void sys_exit(int status) {
	for (;;) SYS(exit_group, status, 0, 0, 0, 0, 0);
}

void *memcpy(void *restrict to, const void *restrict from, size_t size) {
	typedef u64 __attribute__((may_alias, aligned(1))) word; /* unaligned */
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

/* Slabs of 256 KiB, cut into chunks; all are freed once no chunk is in use, so that a busy hour leaves nothing. */
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

static long with_flags(long fd) {
	if (fd < 0) return fd;
	sys_fcntl(fd, F_SETFD, FD_CLOEXEC);
	sys_fcntl(fd, F_SETFL, sys_fcntl(fd, F_GETFL, 0) | O_NONBLOCK);
	return fd;
}

int sys_accept(int fd) {
	long got = SYS(accept4, fd, 0, 0, SOCK_FLAGS, 0, 0);
	return (int)(is_missing(got) ? with_flags(SYS(accept, fd, 0, 0, 0, 0, 0)) : got);
}

int sys_pipe(int fds[2]) {
	long error = SYS(pipe2, fds, SOCK_FLAGS, 0, 0, 0, 0);
#ifdef __NR_pipe
	if (is_missing(error) && (error = SYS(pipe, fds, 0, 0, 0, 0, 0)) == 0) with_flags(fds[0]), with_flags(fds[1]);
#endif
	return (int)error;
}

int sys_epoll_create(void) {
	long fd = SYS(epoll_create1, O_CLOEXEC, 0, 0, 0, 0, 0);
#ifdef __NR_epoll_create
	if (is_missing(fd) && (fd = SYS(epoll_create, 64, 0, 0, 0, 0, 0)) >= 0) sys_fcntl(fd, F_SETFD, FD_CLOEXEC);
#endif
	return (int)fd;
}

long sys_epoll_wait(int epoll, struct epoll_event *events, long count, int timeout_ms) {
	long got = SYS(epoll_pwait, epoll, events, count, timeout_ms, 0, 8);
#ifdef __NR_epoll_wait
	if (is_missing(got)) got = SYS(epoll_wait, epoll, events, count, timeout_ms, 0, 0);
#endif
	return got;
}

long sys_ppoll(struct pollfd *fds, long count, const struct __kernel_timespec *timeout) {
	long got = SYS(ppoll, fds, count, timeout, 0, 8, 0);
#ifdef __NR_poll
	if (is_missing(got)) got = SYS(poll, fds, count, timeout->tv_sec * 1000 + timeout->tv_nsec / 1000000, 0, 0, 0);
#endif
	return got;
}

/* For unpredictable values; not for keys. */
void sys_random(void *to, size_t size) {
	if (SYS(getrandom, to, size, 0, 0, 0, 0) == (long)size) return;
	int fd = sys_open("/dev/urandom", O_RDONLY);
	if (fd < 0) return;
	sys_read(fd, to, size);
	sys_close(fd);
}

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
