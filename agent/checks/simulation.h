/* A kernel, a host, servers and a clock for the whole agent, in one process: what agent_fuzz.c plays its scripts on.
 *
 * kernel.c and tables.c answer the agent's system calls, host.c is the host and holds to the agent what SPEC.md says of it, agent_fuzz.c
 * reads the script. Bytes of servers and of clients are a function of stream, direction and position: no byte that is lost,
 * doubled or out of order goes unseen, and none has to be kept. */
#ifndef SIMULATION_H
#define SIMULATION_H

#include "agent.h"
#include "driver.h"

enum { DESCRIPTORS = 512, LITERAL = 1 << 17, SMALL = 1600, NOBODY = 255, DATAGRAMS = 16 };
enum kind { UNUSED_FILE, STDIN, STDOUT, EPOLL, SOCKET, LISTENER, DNS, NETLINK, PIPE, TEXT_FILE, FOLDER };
enum way { TO_HOST, TO_SERVER };

struct bytes { /* literally those */
	u32 at, size, capacity;
	u8 *of;
};

/* A descriptor of the agent's, and who is at its other end. */
struct file {
	u8 kind, who; /* `who`: the stream whose server it is, or that it carries; NOBODY: not known */
	bool registered, udp, connecting, connected, met_itself;
	bool direct, trunk; /* the other end is the host */
	bool stale;         /* the host has asked for another meanwhile */
	bool broke;         /* by the script's will */
	u32 mask;
	u64 key;
	/* What the agent can read: literal bytes, then those of `way` from `at` to `end`, then the end, or the error. */
	struct bytes literal;
	u8 way;
	u32 at, end;
	bool ended;
	int error;
	/* What the agent writes. */
	u32 room; /* that the other end still takes */
	bool shut;
	u32 proof; /* bytes of the answer to a greeting that have come */
	u32 datagrams[DATAGRAMS], datagram_count;
	/* Of a pipe: its two descriptors are one after the other. `held` bytes from `at` on. */
	u32 held;
	u8 secret[SECRET_SIZE]; /* that the greeting was made with */
	/* Of a name asked for: the questions. */
	u16 questions[2], question_count;
	u32 entry;       /* of a dump or folder: how far it is read; of a direct connection: its token, 0 for a wrong one */
	u8 small[SMALL]; /* for `literal`, but of stdin and the trunk */
};

/* Faults that the script asks for: the next call of that class fails. */
enum fault_class { NO_FAULT, AT_SOCKET, AT_EPOLL, AT_PIPE, AT_PIPE_SIZE, AT_ACCEPT, AT_LISTEN, AT_OPEN, AT_SPLICE, AT_CHUNK, AT_READ,
	AT_WRITE, AT_NETLINK, FAULT_CLASSES };

struct listening { /* a row of the container's tables */
	u16 port;
	u8 family, pid;
	bool udp;
	u32 inode;
};

/* All that is simulated, on the heap and emptied for each input. */
struct simulation {
	u8 large[2][LITERAL]; /* for stdin and the trunk */
	struct file files[DESCRIPTORS];
	u32 top; /* descriptors from there on were never used */
	u64 clock_ms, heard_ms, progress;
	u32 crumb; /* the most that one call moves */
	u8 faults[FAULT_CLASSES];
	u32 chunks, calls_without_progress;
	bool faulty; /* faults were asked for */
	/* The container. */
	u8 backlog[8], backlog_count; /* connections of the host that wait for accept: 1 + what they greet with */
	struct listening rows[16];
	u32 row_count, copies; /* each row stands for `copies` sockets */
	u8 answers;            /* how netlink answers */
	u32 user, group; /* that its access to files is judged by */
	bool dumpable;   /* since that has changed */
	char words[128]; /* of its stderr */
	u32 words_size;
	const u8 *hosts;
	u32 hosts_size;
};
extern struct simulation *k;

u8 byte_of(u32 who, enum way way, u32 at);
struct file *file_of(long fd, enum kind kind); /* broken() when it is not open, or something else */
u32 readiness(const struct file *f);           /* as epoll tells it, whatever was asked for */
int open_file(enum kind kind);                 /* the lowest descriptor, as the kernel gives it */
bool put_literal(struct file *f, const u8 *bytes, u32 size); /* false: that does not fit */
void abort_connection(struct file *f, int error);

bool fails(enum fault_class class);            /* the script wants this call to fail */

/* tables.c: as the system calls return */
long netlink_answer(struct file *f, u8 *to, u32 size);
long open_path(long folder, const char *path);
long text_of(struct file *f, u8 *to, u32 size);
long list(struct file *f, u8 *to, u32 size);
long link_of(struct file *f, const char *name, u8 *to, u32 size); /* `f` NULL: its own network namespace */
long owner_of(struct file *f, const char *pid, struct stat *to);

/* agent_fuzz.c */
void script_look(void);          /* what happens before the agent looks */
void script_goes_on(u64 until); /* nothing is ready: the next step, or time passes, up to then once the script is over */

/* host.c */
enum { STREAMS = 48 };
struct host_stream {
	u32 number;
	bool udp, on_trunk, answered, ended_by_agent, ended_by_host, over, forgotten;
	bool expects, moved_by_host, moved_by_agent, ended_before_move;
	bool disturbed; /* its server or its direct connection has broken off, so that it may be reset */
	u64 taken, offered; /* by its server, which has said so much when its connection is closed */
	u64 may_send, agent_may_send; /* credit: ours towards the agent, the agent's */
	u64 given_back;               /* of what we sent */
	u64 sent, got, got_early;
	u8 token[TOKEN_SIZE];
	int direct; /* the descriptor of the proven connection; -1: none */
};
struct path_state { /* of stdin and stdout, or of the trunk */
	bool is_there, valid; /* valid: all that we said so far is allowed */
	bool must_end;        /* what we said cannot be taken for anything that is allowed */
	bool greeted;
	u32 have, pings, pongs;
	u8 frame[HEADER_SIZE + MAX_PAYLOAD];
};
struct host {
	struct path_state paths[2]; /* 0: exec, 1: trunk */
	struct host_stream streams[STREAMS];
	u32 count; /* of streams */
	u32 last_number;
	u32 window; /* the agent's, as we told ours */
	u8 secret[SECRET_SIZE], trunk_token[TOKEN_SIZE], trunk_key[DIGEST_SIZE];
	bool said_hello, asked_to_listen, wants_listener, bye, wants_trunk;
	int trunk_fd;
	u16 port;
	u32 tokens;
	u32 stdin_gate; /* bytes of stdin that are let through; the rest waits */
	bool stdin_ended;
	u8 signed_open[HEADER_SIZE + MAX_SIGNED_OPEN];
	u32 signed_size;
	u8 flip_at, flip; /* the next frame is sent with this change */
};
extern struct host *h;

void host_read(u32 path, const u8 *bytes, u32 size); /* what the agent said */
void host_hello(u32 window);
void host_open(u8 how, u8 where, bool on_trunk);
void host_data(u32 index, u32 size);
void host_value(u32 index, enum frame_type type, u32 value); /* RESET, CREDIT */
void host_plain(u32 index, enum frame_type type);            /* END, MOVE */
void host_direct(u32 index);
void host_ping(u32 path);
void host_watch(u32 interval_ms, bool udp);
void host_listen(u8 family);
void host_trunk(bool any);
void host_replay(bool wrong_tag); /* the last SIGNED_OPEN once more, or a new one that is not signed right */
void host_raw(const u8 *bytes, u32 size, u32 path);
void host_connects(u8 with); /* to the agent's listener */
u32 greeting_of(u8 with, u8 *to, u32 *index, bool *as_trunk, u32 *serial);
void host_takes(struct file *f, const u8 *bytes, u32 size); /* what the agent writes into a socket, a server's too */
void host_lost_trunk(void);
bool host_sees_end(const struct host_stream *s);
#endif
