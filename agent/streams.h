/* Shared by the stages of a stream: stream_table.c stores it, dial.c connects it to a server, streams.c moves its bytes over a
 * path, splice.c over a direct connection, which listener.c accepts. */
#ifndef AGENT_STREAMS_H
#define AGENT_STREAMS_H

#include "agent.h"

enum { MAX_STREAMS = 4096, MAX_FOUND = 16 };
enum stream_state { RESOLVING, CONNECTING, CONNECTED };

struct piece {
	struct piece *next;
	u32 start, end;
	u8 bytes[CHUNK - 16];
};

/* In a chunk while the stream is connecting. */
struct dial {
	u8 payload[MAX_OPEN];
	u32 size, at;
	u8 index, addresses; /* of the host's list */
	u8 found_at, found_count;
	u8 answered; /* bit 0: A, bit 1: AAAA */
	u8 server;   /* the nameserver being queried, from 0 */
	u8 name_size;
	u16 id;
	int error;
	struct address found[MAX_FOUND];
};
_Static_assert(sizeof(struct dial) <= CHUNK && sizeof(struct piece) == CHUNK, "both fit a chunk");

struct stream {
	u32 number; /* 0: not in use */
	struct path *path; /* where it was opened */
	int fd;
	u32 credit;   /* bytes that the host still accepts */
	u32 granted;  /* bytes that the host may still send */
	u32 owed;     /* taken by the server, not returned as credit yet */
	u32 kept;     /* cost of datagrams that wait for the name */
	u32 mask;     /* registered with epoll */
	u64 deadline; /* 0: none */
	struct dial *dial;
	struct piece *first, *last;
	struct direct *direct; /* an authenticated connection from the host */
	int write_error;
	u16 next; /* index + 1 in the chain of its hash, or of the free list */
	u8 state;
	bool udp, in_epoll, host_end, server_end;
	bool shut;             /* the host's EOF was passed to the server */
	bool expects, lost;    /* a connection with `token` may come; one came and closed before MOVE */
	bool moved;            /* bytes use `direct` */
	u8 token[TOKEN_SIZE];
};

extern struct stream streams[MAX_STREAMS];
extern u16 streams_high; /* streams[streams_high] and above were never used */

/* streams.c: act on a frame; return what is wrong, or NULL */
const char *stream_open(u32 number, const u8 *payload, u32 size, struct path *from);
const char *stream_data(struct stream *s, const struct event *e);
const char *stream_end(struct stream *s);
const char *stream_credit(struct stream *s, u32 size);

/* stream_table.c */
extern u64 streams_due, directs_due; /* the earliest deadline of each table */
struct stream *stream_find(u32 number);
struct stream *stream_add(u32 number, struct path *path);
void stream_cut(struct stream *s); /* the server sees a reset */
bool keep(struct stream *s, const u8 *bytes, u32 size);
void take_kept(struct stream *s, u8 *to, u32 size);
void give_back(struct stream *s, u32 size); /* return credit to the host */
void close_socket(struct stream *s);
void finish(struct stream *s);
void reset(struct stream *s, int error);
void set_deadline(struct stream *s, u64 when);
int socket_error(struct stream *s);
bool watch(int fd, bool known, u32 mask, u64 key); /* `known`: registered with epoll */
bool watch_socket(struct stream *s, u32 mask);
void park(struct stream *s);                    /* out of epoll, which reports a hang-up with every mask */
void pass_host_end(struct stream *s);           /* once, when the server has all of the host's bytes */
bool still_open(struct stream *s);              /* these three: false if the stream is gone */
bool write_kept(struct stream *s);
bool write_failed(struct stream *s, int error); /* the server takes no more */

/* dial.c */
enum dial_outcome { DIAL_WAITS, DIAL_OPEN, DIAL_REFUSED };
enum dial_outcome dial_next(struct stream *s);
enum dial_outcome dial_ready(struct stream *s);
enum dial_outcome dial_late(struct stream *s);

/* direct connections: table in stream_table.c, handshake in listener.c, bytes in splice.c */
enum { CONNECTIONS = 64, GREETINGS = 8, SLOTS = CONNECTIONS + GREETINGS, LEAVE_MS = 20000, PUMP_TURN = 512 * 1024 };
enum direct_state { UNUSED, GREETING, PROVEN, MOVED, LEAVING };

struct pump {
	int from, to; /* a pipe: written to `to`, read from `from`; -1: none, bytes are copied */
	u32 held;     /* bytes in the pipe, or left in the source, that the sink does not take yet */
	bool done;    /* the source has ended */
};

struct direct {
	int fd;
	u32 mask; /* 0: not in epoll */
	u8 state;
	u8 have; /* of the greeting */
	u64 deadline;
	struct stream *stream;
	struct pump up, down; /* towards the server, towards the host */
	u8 greeting[64];
};

extern struct direct slots[SLOTS];
bool watch_direct(struct direct *d, u32 mask); /* mask 0 removes it from epoll */
void set_limit(struct direct *d, u64 when);
void close_pump(struct pump *p);
void release(struct direct *d);
void splice_check(void); /* whether the kernel has splice(2) */
bool open_pump(struct pump *p);
const char *listener_start(const struct event *e);
const char *direct_expect(struct stream *s, const u8 *token); /* DIRECT; NULL for a stream that has ended */
const char *direct_move(struct stream *s);
void direct_run(struct stream *s, bool up, bool down); /* moves bytes, may end the stream */
void direct_refresh(struct stream *s);
void direct_drop(struct stream *s);

/* trunk.c */
const char *trunk_expect(const u8 *token, u32 size); /* TRUNK; ends an earlier trunk */
bool trunk_takes(const u8 *token);                   /* the connection with this token is the trunk */
bool trunk_start(int fd);                            /* false: impossible; the caller keeps the descriptor */
bool trunk_signed(const struct event *e);            /* whether this SIGNED_OPEN is the host's, and new */

#endif
