/* The lowest layer: types, system calls without a libc, bytes, time, and a bounded memory pool.
 *
 * Struct layouts and numbers come from the kernel's headers, so that x86_64, aarch64 and riscv64 share all sources. Calls return what
 * the kernel returns: a negative errno on failure. */
#ifndef AGENT_SYS_H
#define AGENT_SYS_H

#include <asm/errno.h>
#include <asm/poll.h>
#include <asm/socket.h>
#include <asm/stat.h>
#include <asm/unistd.h>
#include <linux/auxvec.h>
#include <linux/elf.h>
#include <linux/eventpoll.h>
#include <linux/fcntl.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/mman.h>
#include <linux/prctl.h>
#include <linux/tcp.h>
#include <linux/time_types.h>
#include <linux/uio.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

/* Missing in the kernel's exported headers. */
enum { AF_INET = 2, AF_INET6 = 10, AF_NETLINK = 16, SOCK_STREAM = 1, SOCK_DGRAM = 2, SOCK_RAW = 3 };
enum { SHUT_WR = 1, MSG_NOSIGNAL = 0x4000, SOCK_FLAGS = O_NONBLOCK | O_CLOEXEC };

#ifdef AGENT_SIMULATED
long sys6(long number, long a, long b, long c, long d, long e, long f); /* checks/kernel.c */
#else
static inline long sys6(long number, long a, long b, long c, long d, long e, long f) {
#if defined(__x86_64__)
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	long result;
	__asm__ volatile("syscall"
	                 : "=a"(result)
	                 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
	                 : "rcx", "r11", "memory");
	return result;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d, x4 __asm__("x4") = e, x5 __asm__("x5") = f;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory", "cc");
	return x0;
#elif defined(__riscv) && __riscv_xlen == 64
	register long a7 __asm__("a7") = number, a0 __asm__("a0") = a, a1 __asm__("a1") = b, a2 __asm__("a2") = c;
	register long a3 __asm__("a3") = d, a4 __asm__("a4") = e, a5 __asm__("a5") = f;
	__asm__ volatile("ecall" : "+r"(a0) : "r"(a7), "r"(a1), "r"(a2), "r"(a3), "r"(a4), "r"(a5) : "memory");
	return a0;
#else
#error "the agent is written for x86_64, aarch64 and riscv64"
#endif
}
#endif

#define SYS(name, a, b, c, d, e, f) \
	sys6(__NR_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define sys_read(fd, to, size) SYS(read, fd, to, size, 0, 0, 0)
#define sys_write(fd, from, size) SYS(write, fd, from, size, 0, 0, 0)
#define sys_readv(fd, parts, count) SYS(readv, fd, parts, count, 0, 0, 0)
#define sys_writev(fd, parts, count) SYS(writev, fd, parts, count, 0, 0, 0)
#define sys_open(path, flags) sys_openat(AT_FDCWD, path, flags)
#define sys_openat(folder, path, flags) ((int)SYS(openat, folder, path, (flags) | O_CLOEXEC, 0, 0, 0))
#define sys_close(fd) SYS(close, fd, 0, 0, 0, 0, 0)
#define sys_fstat(fd, to) SYS(fstat, fd, to, 0, 0, 0, 0)
#define sys_fcntl(fd, what, value) SYS(fcntl, fd, what, value, 0, 0, 0)
#define sys_getdents(fd, to, size) SYS(getdents64, fd, to, size, 0, 0, 0)
#define sys_readlinkat(folder, path, to, size) SYS(readlinkat, folder, path, to, size, 0, 0)
#define sys_socket(family, type, protocol) ((int)SYS(socket, family, (type) | SOCK_FLAGS, protocol, 0, 0, 0))
#define sys_connect(fd, address, size) SYS(connect, fd, address, size, 0, 0, 0)
#define sys_send(fd, from, size) SYS(sendto, fd, from, size, MSG_NOSIGNAL, 0, 0)
#define sys_shutdown(fd, how) SYS(shutdown, fd, how, 0, 0, 0, 0)
#define sys_getsockname(fd, to, size) SYS(getsockname, fd, to, size, 0, 0, 0)
#define sys_setsockopt(fd, level, name, value, size) SYS(setsockopt, fd, level, name, value, size, 0)
#define sys_getsockopt(fd, level, name, value, size) SYS(getsockopt, fd, level, name, value, size, 0)
#define sys_bind(fd, address, size) SYS(bind, fd, address, size, 0, 0, 0)
#define sys_listen(fd, backlog) SYS(listen, fd, backlog, 0, 0, 0, 0)
#define sys_splice(from, to, size) SYS(splice, from, 0, to, 0, size, 3 /* SPLICE_F_MOVE, SPLICE_F_NONBLOCK */)
#define sys_peek(fd, to, size) SYS(recvfrom, fd, to, size, 2 /* MSG_PEEK */, 0, 0)
#define sys_discard(fd, size) SYS(recvfrom, fd, 0, size, 0x20 /* MSG_TRUNC */, 0, 0)
#define sys_epoll_ctl(epoll, what, fd, event) SYS(epoll_ctl, epoll, what, fd, event, 0, 0)
#define sys_mmap(size) SYS(mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
#define sys_munmap(at, size) SYS(munmap, at, size, 0, 0, 0, 0)

/* Calls that an older kernel, gVisor or a seccomp profile may lack: older equivalents are used, if any. */
struct pollfd;
static inline bool is_missing(long result) { return result == -ENOSYS || result == -EPERM; }
int sys_accept(int fd);
int sys_pipe(int fds[2]);
int sys_epoll_create(void);
long sys_epoll_wait(int epoll, struct epoll_event *events, long count, int timeout_ms);
long sys_ppoll(struct pollfd *fds, long count, const struct __kernel_timespec *timeout);
void sys_random(void *to, size_t size);

enum { EXIT_BROKEN = 5 };

_Noreturn void sys_exit(int status);
u64 now_ms(void); /* monotonic; stops while the machine sleeps, so that a sleep is no silence */
u64 cpu_us(void); /* CPU time of this process */
extern u64 now;   /* of this turn of the loop, as now_ms() */

extern bool may_be_dumped; /* only tests set it */
/* No core dump, no ptrace, no descriptors in /proc for other processes without CAP_SYS_PTRACE, even root's. */
void stay_private(void);

void *memcpy(void *to, const void *from, size_t size);
void *memmove(void *to, const void *from, size_t size);
void *memset(void *to, int byte, size_t size);
int memcmp(const void *a, const void *b, size_t size);
size_t text_size(const char *text);
/* Decimal digits at `text`; returns how many were read (0: none, or more than 19). */
size_t parse_number(const u8 *text, size_t size, u64 *number);

/* Chunks of CHUNK bytes for what servers do not take at once: at most 64 MiB (256 stalled windows), then NULL. */
enum { CHUNK = 4096, POOL_LIMIT = 64 << 20 };
void *chunk_take(void);
void chunk_give(void *chunk);

static inline u32 lesser(u32 a, u32 b) { return a < b ? a : b; }

#endif
