/* What the parts of the agent know of each other. One thread, one epoll; every function returns without waiting. */
#ifndef AGENT_AGENT_H
#define AGENT_AGENT_H

#include "sys.h"
#include "wire.h"

enum { WINDOW = 256 * 1024 }; /* what we accept on a stream before the server has taken it */

/* out.c: what waits to go to the host. Bounded; who writes asks for room first. */
enum {
	ROOM_FOR_INPUT = 66 * 1024,   /* answers to one read of stdin (64 KiB) are never longer than what they answer */
	ROOM_FOR_STREAMS = 160 * 1024 /* leaves that much free even after a datagram of 65,507 bytes */
};
u32 out_room(void);
bool out_pending(void);
void out_bytes(const u8 *bytes, u32 size);
void out_frame(enum frame_type type, u32 flags, u32 stream, const u8 *payload, u32 size);
void out_value(enum frame_type type, u32 stream, u32 value);
/* Reads at most `most` bytes of fd into a DATA frame. 0: nothing was read and (unless `datagram`) no frame was made. */
long out_receive(int fd, u32 stream, u32 most, bool datagram);
/* Writes what stdout takes; 0 or a negative errno (not EAGAIN). */
long out_flush(void);

/* streams.c: connections to servers. */
struct address {
	u8 family; /* 4 or 6 */
	u8 bytes[16];
};
void streams_start(int epoll, u32 host_window);
const char *streams_frame(const struct event *event); /* OPEN to CREDIT, LISTEN to MOVE; what is wrong, or NULL */
void streams_ready(u64 key, u32 events);
u64 streams_expire(u64 now); /* ends what took too long; returns when to look again */
void streams_cut(void);      /* resets every server connection */
extern u64 now;              /* of this turn of the loop */

/* direct.c: connections from the host that carry one stream each. Their keys in epoll have no stream number. */
enum { DIRECT_KEY = 16 };
extern u64 direct_inode; /* of our own listener: nobody's port */
void direct_ready(u64 key, u32 events);
u64 direct_expire(u64 now); /* as streams_expire */

/* sha256.c */
enum { DIGEST_SIZE = 32, HMAC_MOST = 64 };
/* At most 64 bytes of key, HMAC_MOST of message. */
void hmac_sha256(const u8 *key, u32 key_size, const u8 *message, u32 size, u8 *digest);

/* resolve.c: names. */
struct sources {
	const char *hosts, *resolv;
	u16 port;
};
extern struct sources sources;
u32 hosts_lookup(const u8 *name, u32 size, struct address *found, u32 most);
int dns_send(const u8 *name, u32 size, u16 id); /* A under id, AAAA under id ^ 1; a socket, or a negative errno */
/* Addresses in an answer; `*which` is 0 for A, 1 for AAAA, -1 when it answers neither of our questions. */
u32 dns_parse(const u8 *answer, u32 size, u16 id, int *which, struct address *found, u32 most);
bool parse_address(const u8 *text, u32 size, struct address *address);
long read_file(const char *path, u8 *to, u32 size);
/* Makes a socket address; returns its size. */
u32 socket_address(struct sockaddr_in6 *to, const struct address *address, u32 port);
int connect_address(int type, const struct address *address, u32 port, int *fd); /* 0, -EINPROGRESS or why not */

/* detect.c: listening sockets and whose they are. */
void watch_start(u32 interval_ms, bool udp, bool netlink);
u64 watch_turn(void); /* does a bounded piece of work; returns when to call again */

#endif
