/* The interfaces between the agent's parts. One thread, one epoll; no function blocks. */
#ifndef AGENT_AGENT_H
#define AGENT_AGENT_H

#include "auth.h"

enum { WINDOW = 256 * 1024 }; /* bytes accepted on a stream before the server has taken them */

/* A connection to the host with its streams: stdin and stdout, or the trunk. */
enum { PATH_RING = 256 * 1024, PATH_INPUT = 64 * 1024 };
struct path {
	int in, out;    /* -1: closed */
	u32 head, tail; /* of the ring; byte counts without bound, positions are modulo its size */
	struct decoder decoder;
	u32 datagram_size; /* of the datagram being received: frames on one path do not interleave */
	u8 *ring;          /* of PATH_RING bytes */
	u8 *datagram;      /* of MAX_PAYLOAD bytes */
};
extern struct path exec_path, trunk_path;

/* out.c: output to the host. Bounded; writers check the room first. */
enum {
	ROOM_FOR_INPUT = 66 * 1024,   /* answers to one read of a path (64 KiB) are never longer than the input */
	ROOM_FOR_STREAMS = 160 * 1024 /* leaves that much free even after a datagram of 65,507 bytes */
};
u32 out_room(const struct path *to);
bool out_pending(const struct path *to);
void out_bytes(struct path *to, const u8 *bytes, u32 size);
void out_frame(struct path *to, enum frame_type type, u32 flags, u32 stream, const u8 *payload, u32 size);
void out_value(struct path *to, enum frame_type type, u32 stream, u32 value);
/* Reads at most `most` bytes of fd into a DATA frame. 0: nothing was read and (unless `datagram`) no frame was made. */
long out_receive(struct path *to, int fd, u32 stream, u32 most, bool datagram);
/* Writes what the path takes; 0 or a negative errno (not EAGAIN). */
long out_flush(struct path *to);

/* streams.c: connections to servers. */
struct address {
	u8 family; /* 4 or 6 */
	u8 bytes[16];
};
void streams_start(u32 host_window);
void streams_ready(u64 key, u32 events);
u64 streams_expire(u64 now); /* ends timed-out streams; returns when to call again */
void streams_cut(const struct path *path); /* resets the server connections of its streams */
extern int epoll_fd;

/* dispatch.c: reads the path once and acts on it; returns as read(2), and what is wrong, or NULL. */
long path_read(struct path *from, const char **error);
void trunk_ready(u32 events);

/* trunk.c: a TCP connection from the host that carries many streams. */
enum { TRUNK_KEY = 2 };
void trunk_flush(void); /* writes what it takes; watches for the rest */
void trunk_end(void);   /* closes it and cuts its streams */

/* listener.c: connections from the host with one stream each. Their epoll keys have no stream number. */
enum { DIRECT_KEY = 16 };
extern u64 direct_inode; /* of the agent's own listener, which is no server's */
void direct_ready(u64 key, u32 events);
u64 direct_expire(u64 now); /* as streams_expire */

/* resolve.c: names. */
struct sources {
	const char *hosts, *resolv;
	u16 port;
};
extern struct sources sources;
u32 hosts_lookup(const u8 *name, u32 size, struct address *found, u32 most);
bool nameserver(u32 index, struct address *address); /* from 0; false beyond the last */
/* Queries the nameserver with this index for A under id and AAAA under id ^ 1: a socket, -ENOENT beyond the last nameserver,
 * another negative errno if this one cannot be queried. */
int dns_send(u32 index, const u8 *name, u32 size, u16 id);
/* Addresses in an answer; `*which` is 0 for A, 1 for AAAA, UNRELATED if it answers neither query, FAILED if the nameserver
 * reports a failure. */
enum { UNRELATED = -1, FAILED = -2 };
u32 dns_parse(const u8 *answer, u32 size, u16 id, int *which, struct address *found, u32 most);
bool parse_address(const u8 *text, u32 size, struct address *address);
long read_file(const char *path, u8 *to, u32 size);
int hex_digit(u8 c); /* -1: it is none */
/* Makes a socket address; returns its size. */
u32 socket_address(struct sockaddr_in6 *to, const struct address *address, u32 port);
int connect_address(int type, const struct address *address, u32 port, int *fd); /* 0, -EINPROGRESS or another error */

/* detect.c: listening sockets and their processes. */
void watch_start(u32 interval_ms, bool udp);
extern bool netlink; /* false: only /proc, for tests */
u64 watch_turn(void); /* does a bounded amount of work; returns when to call again */

#endif
