/* The whole agent, on a script: the input's bytes say what host, servers, nameserver, clients, tables and clock do, step by
 * step, whenever the agent waits. See simulation.h.
 *
 * A step is a byte (its low five bits: which; the high bit: another one before the agent looks) and what it asks for. At the
 * end everybody lets the agent come to its end, and what has to hold then is looked at: each OPEN has been answered, no
 * stream is left, nor a descriptor of one, nor memory; and it leaves at the end of stdin, soon. */
#include "simulation.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SETTLE_MS = 600000, LEAST_SETTLE_MS = 45000, SILENCE = 15000, FAREWELL_LOOKS = 400 };

static const u8 *script, *script_end;
static jmp_buf *out;
static bool on_trunk, settled;
static u64 settle_until;
static u32 looks_at_end;

static u8 next_byte(void) { return script < script_end ? *script++ : 0; }
static u32 next_size(void) { return 1u << (next_byte() % 18); }

/* One of the streams that there are. */
static u32 next_stream(void) {
	u32 which = next_byte();
	return h->count ? which % h->count : which;
}

/* How many of the bytes that follow are meant literally. */
static u32 next_literal(u32 most) {
	u32 size = next_byte() & most;
	return lesser(size, (u32)(script_end - script));
}

static struct file *server_of(u32 who) {
	for (struct file *f = k->files; f < k->files + k->top; f++)
		if (f->kind == SOCKET && !f->direct && f->who == who && (f->connected || f->connecting)) return f;
	return NULL;
}

/* What the other end of a connection does: the server's, or the host's with a direct one or the trunk. */
static void act(struct file *f, u8 what) {
	u32 size = next_size();
	if (!f) return;
	bool speaks = !f->ended && !f->connecting && !f->trunk;
	if (f->direct) speaks = speaks && f->who < h->count && h->streams[f->who].moved_by_host && f->proof == DIGEST_SIZE;
	u32 kind = what % 8;
	if (f->who < h->count && (kind == 3 || kind == 7 || (kind == 2 && f->direct))) h->streams[f->who].disturbed = true;
	switch (kind) {
	case 0:
	case 1:
		if (f->udp && f->datagram_count < DATAGRAMS && f->connected) f->datagrams[f->datagram_count++] = lesser(size - 1, 65507);
		if (!f->udp && speaks) f->end += size;
		break;
	case 2: /* its end */
		if (f->connecting || f->udp) break;
		f->ended = f->broke = true;
		break;
	case 3:
		if (f->udp) f->error = ECONNREFUSED;
		else if (!f->connecting) abort_connection(f, ECONNRESET);
		break;
	case 4: f->room = size; break; /* it takes so much more */
	case 5: f->room = UINT32_MAX; break;
	case 6: /* a connection that waits comes about */
		f->connected |= f->connecting;
		f->connecting = false;
		break;
	default:
		if (f->connecting) abort_connection(f, size & 1 ? ECONNREFUSED : EHOSTUNREACH);
	}
}

static void answer_name(u8 how) {
	struct file *f = k->files;
	while (f < k->files + k->top && f->kind != DNS) f++;
	if (f == k->files + k->top || !f->question_count) return;
	static const u8 counts[] = {0, 1, 2, 20};
	u8 answer[1024] = {0};
	u32 at = 12, which = how & 1, addresses = counts[how >> 1 & 3], size = which ? 16 : 4;
	if (how >> 6 == 3) {
		f->error = ECONNREFUSED;
		return;
	}
	put_u16(answer, (u32)f->questions[0] ^ which ^ (how & 0x20 ? 0x100 : 0));
	answer[2] = 0x81;
	answer[5] = 1;
	answer[7] = (u8)addresses;
	memcpy(answer + at, "\3box\0\0\1\0\1", 9);
	at += 9;
	for (u32 i = 0; i < addresses; i++) {
		put_u16(answer + at, 0xc00c);
		put_u16(answer + at + 2, which ? 28 : 1);
		put_u16(answer + at + 4, 1);
		put_u16(answer + at + 10, size);
		memset(answer + at + 12, 127, size);
		at += 12 + size;
	}
	if (how & 0x10) at -= lesser(at, next_byte());
	put_literal(f, answer, at);
}

static void change_tables(u8 how) {
	struct listening *l = &k->rows[how % 16];
	if (how & 0x10) {
		k->row_count = lesser(how & 15, k->row_count);
	} else if (k->row_count < 16) {
		l = &k->rows[k->row_count++];
		u8 more = next_byte();
		*l = (struct listening){.port = (u16)(1 + more), .family = how & 0x20 ? 6 : 4, .pid = (u8)(1 + how % 6), .udp = how >> 7, .inode = 100u + more};
	}
	if (how & 0x40) k->answers = next_byte() % 6, k->copies = k->answers == 1 ? 300 : 1;
}

static void step(void) {
	u32 who;
	u8 what = next_byte();
	bool over_trunk = on_trunk && h->paths[1].is_there;
	k->progress++;
	switch (what & 31) {
	case 0: host_hello(next_byte() & 1 ? MIN_WINDOW : 1 << 20); break;
	case 1:
	case 2: who = next_byte(), host_open((u8)who, next_byte(), over_trunk); break;
	case 3:
	case 4: who = next_stream(), host_data(who, next_size() - 1); break;
	case 5: host_plain(next_stream(), END); break;
	case 6: host_plain(next_stream(), MOVE); break;
	case 7: who = next_stream(), host_value(who, RESET, next_byte()); break;
	case 8: who = next_stream(), host_value(who, CREDIT, next_size() << (next_byte() & 14)); break;
	case 9: host_ping(over_trunk); break;
	case 10: who = next_byte(), host_watch(who * 16u, next_byte() & 1); break;
	case 11: who = next_byte(), host_listen(who & 2 ? 0 : who & 1 ? 6 : 4); break;
	case 12: host_direct(next_stream()); break;
	case 13:
		who = next_byte();
		if (who < 200) host_trunk(who & 3);
		else host_replay(who & 1);
		break;
	case 14: host_connects(next_byte()); break;
	case 15: {
		u32 size = next_literal(63);
		host_raw(script, size, over_trunk);
		script += size;
		break;
	}
	case 16: h->flip_at = next_byte(), h->flip = next_byte(); break;
	case 17: on_trunk = !on_trunk; break;
	case 18: h->stdin_gate = next_size() - 1; break;
	case 19: h->stdin_gate = UINT32_MAX; break;
	case 20: k->files[1].room = next_byte() & 3 ? next_size() : UINT32_MAX; break;
	case 21:
	case 22: who = next_stream(), act(server_of(who), next_byte()); break;
	case 23: { /* the host, with what it has connected */
		who = next_byte();
		const struct host_stream *s = h->count ? &h->streams[who % h->count] : NULL;
		struct file *f = who >> 7 ? h->paths[1].is_there ? &k->files[h->trunk_fd] : NULL
		                          : s && s->direct >= 0 ? &k->files[s->direct] : NULL;
		act(f, next_byte());
		break;
	}
	case 24: k->clock_ms += next_size(); break;
	case 25: k->clock_ms += 50u * next_byte(); break;
	case 26: answer_name(next_byte()); break;
	case 27: change_tables(next_byte()); break;
	case 28:
		who = next_byte();
		k->faults[who % FAULT_CLASSES] = 1 + next_byte() % 4;
		k->faulty = true;
		break;
	case 29: k->crumb = next_byte(); break;
	case 30: {
		u32 size = next_literal(255);
		k->hosts = script, k->hosts_size = size;
		script += size;
		break;
	}
	default: /* the end, at once: of stdin, or of who reads stdout */
		if (next_byte() & 1) k->files[1].error = EPIPE;
		h->stdin_gate = UINT32_MAX;
		k->crumb = 0;
		h->stdin_ended = k->files[0].ended = true;
		script = script_end;
	}
	if (what & 0x80 && script < script_end) step();
}

/* -- the end -------------------------------------------------------------------------------------- */

/* All is let come to its end: servers answer and end, the host takes what there is and ends its side. Whether that is so. */
static bool settle(void) {
	bool all = true;
	for (struct file *f = k->files; f < k->files + k->top; f++) {
		if (f->kind != SOCKET || f->trunk) continue;
		f->room = UINT32_MAX;
		if (f->connecting) abort_connection(f, ECONNREFUSED);
		/* A client that had ended before the move says nothing more: the FIN is not awaited of it. */
		if (f->connected && !f->udp) f->ended = f->ended || !f->direct || f->who >= h->count || !h->streams[f->who].ended_before_move;
	}
	for (u32 i = 0; i < h->count; i++) {
		struct host_stream *s = &h->streams[i];
		if (host_sees_end(s)) continue;
		all = false;
		if (!s->ended_by_host) host_plain(i, END);
		if (s->agent_may_send < 1 << 20) host_value(i, CREDIT, 1 << 20);
	}
	if (h->paths[1].is_there) k->files[h->trunk_fd].room = UINT32_MAX;
	host_ping(0);
	return all;
}

static void all_is_over(void) {
	bool trunk_lost = !h->paths[1].is_there;
	if (h->paths[0].must_end || (!trunk_lost && h->paths[0].valid && h->paths[1].must_end)) broken("a violation is passed over", trunk_lost, 0);
	if (!h->paths[0].valid || (!trunk_lost && !h->paths[1].valid)) return;
	for (u32 i = 0; i < h->count; i++) {
		const struct host_stream *s = &h->streams[i];
		if (!host_sees_end(s)) broken(s->answered ? "a stream that does not end" : "an OPEN without an answer", i, (long)k->clock_ms);
		if (s->over || s->forgotten || s->udp) continue; /* in order it ends by EOF both ways alone */
		if (s->taken != s->sent && !s->moved_by_host) broken("EOF although the server has not all that was said", i, (long)s->taken);
		if (s->got != s->offered) broken("EOF although the client has not all that was said", i, (long)s->got);
	}
	if (k->chunks) broken("memory is kept although there are no streams", k->chunks, 0);
	for (u32 fd = 3; fd < k->top; fd++) {
		const struct file *f = &k->files[fd];
		bool is_trunk = f->trunk && f->proof == DIGEST_SIZE, is_table = f->kind == NETLINK || f->kind == FOLDER;
		if (f->kind != UNUSED_FILE && f->kind != LISTENER && f->kind != EPOLL && !is_trunk && !is_table)
			broken("a descriptor is kept although there are no streams", fd, f->kind);
	}
}

void script_look(void) {
	if (script < script_end && *script & 0x80) step();
	if (h->stdin_ended && h->stdin_gate == UINT32_MAX && ++looks_at_end > FAREWELL_LOOKS) broken("does not end with stdin", (long)k->clock_ms, 0);
}

void script_goes_on(u64 until) {
	if (script < script_end) return step();
	if (!settle_until) {
		settle_until = k->clock_ms + SETTLE_MS;
		h->stdin_gate = k->files[1].room = UINT32_MAX;
		h->flip = 0;
		k->crumb = 0;
		memset(k->faults, 0, sizeof k->faults);
		if (h->said_hello && !h->stdin_ended) host_watch(0, false);
	}
	if (k->clock_ms < settle_until && !h->stdin_ended) {
		static u64 next;
		if (k->clock_ms >= next) {
			next = k->clock_ms + 5000;
			k->progress++;
			/* Longer than what is left waits for its end: direct connections, greetings. */
			if (settle() && k->clock_ms > settle_until - SETTLE_MS + LEAST_SETTLE_MS) settle_until = k->clock_ms;
			return;
		}
		k->clock_ms = until < next ? until : next;
		return;
	}
	if (!settled) {
		settled = true;
		all_is_over();
		h->stdin_ended = k->files[0].ended = true;
		k->progress++;
		return;
	}
	k->clock_ms = until;
}

_Noreturn void __wrap_sys_exit(int status);
void __wrap_sys_exit(int status) {
	bool ended = h->stdin_ended || k->files[1].error;
	if (status == 5) broken("more is said than there is room for", status, 0);
	if (status == 0 && !ended) broken("it leaves although the host is there", status, 0);
	if ((status == 2 || status == 3) && h->paths[0].valid) {
		fprintf(stderr, "%s", k->words);
		broken("it does not understand a host that is right", status, 0);
	}
	if (status == 4 && k->clock_ms - k->heard_ms < SILENCE) broken("it leaves for silence too soon", (long)k->clock_ms, 0);
	if (status < 0 || status > 5) broken("an exit status of none of its reasons", status, 0);
	if (k->chunks) broken("memory is kept after its end", k->chunks, 0);
	for (u32 fd = 3; fd < k->top; fd++) {
		const struct file *f = &k->files[fd];
		if (f->kind == SOCKET && !f->direct && (f->connected || f->connecting)) broken("a server's connection is left open", fd, f->who);
	}
	longjmp(*out, 1);
}

int __real_agent_main(int argc, char **argv);

int LLVMFuzzerTestOneInput(const u8 *data, size_t size) {
	static struct simulation *simulation;
	static struct host *host;
	if (!simulation) simulation = calloc(1, sizeof *simulation), host = calloc(1, sizeof *host);
	jmp_buf here;
	char name[] = "agent", *arguments[] = {name, NULL};
	struct simulation *kept = simulation;
	struct host *kept_host = host;
	start_afresh();
	k = kept;
	h = kept_host;
	memset(&k->top, 0, sizeof *k - offsetof(struct simulation, top));
	memset(h, 0, sizeof *h);
	k->clock_ms = k->heard_ms = 1000;
	k->copies = 1;
	h->stdin_gate = UINT32_MAX;
	h->paths[0].is_there = h->paths[0].valid = true;
	open_file(STDIN), open_file(STDOUT), open_file(EPOLL);
	script = data, script_end = data + size;
	out = &here;
	if (!setjmp(here)) __real_agent_main(1, arguments);
	return 0;
}
