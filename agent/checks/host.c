/* The host of the simulation: says frames, by the rules or not quite, and holds to the agent what SPEC.md says. */
#include "simulation.h"

struct host *h;

static struct path_state *path_of(const struct host_stream *s) { return &h->paths[s->on_trunk]; }

static struct host_stream *stream_at(u32 index) { return index < h->count ? &h->streams[index] : NULL; }

bool host_sees_end(const struct host_stream *s) {
	if (s->over || s->forgotten) return true;
	return s->ended_by_agent && s->ended_by_host && (!s->moved_by_agent || s->direct < 0);
}

/* -- what the host says --------------------------------------------------------------------------- */

/* Puts a frame on its way, changed if the script says so; false: there is no room for it, or no such path. */
static bool say(u32 path, const u8 *bytes, u32 size) {
	struct path_state *p = &h->paths[path];
	static u8 frame[HEADER_SIZE + MAX_PAYLOAD + 1];
	if (!size || !p->is_there || (!path && h->stdin_ended)) return false;
	struct file *f = file_of(path ? h->trunk_fd : 0, UNUSED_FILE);
	if (path && f->ended) return false;
	if (!path && !h->said_hello) p->valid = false;
	memcpy(frame, bytes, size);
	if (h->flip) {
		frame[h->flip_at % size] ^= h->flip;
		p->valid = false;
		p->must_end = false;
		h->flip = 0;
	}
	if (put_literal(f, frame, size)) return true;
	p->must_end = p->valid = false; /* what comes after it does not fit any more */
	return false;
}

static bool say_frame(u32 path, enum frame_type type, u32 stream, const u8 *payload, u32 size) {
	static u8 frame[HEADER_SIZE + MAX_PAYLOAD];
	u32 at = wire_header(frame, type, 0, size, stream);
	if (size) memcpy(frame + at, payload, size);
	return say(path, frame, at + size);
}

static void break_rules(u32 path, bool broken_ones) {
	if (broken_ones) h->paths[path].valid = false;
}

/* Against rules that hold whatever the agent knows of the stream; to be asked before it is said. */
static void violate(u32 path, bool broken_ones) {
	struct path_state *p = &h->paths[path];
	if (broken_ones && p->valid && p->is_there) p->must_end = true, p->valid = false;
}

void host_raw(const u8 *bytes, u32 size, u32 path) {
	h->paths[path].valid = false;
	say(path, bytes, size);
}

void host_hello(u32 window) {
	u8 hello[HELLO_SIZE];
	violate(0, h->said_hello || window < MIN_WINDOW || window > MAX_WINDOW);
	h->said_hello = true;
	h->window = window;
	say(0, hello, wire_hello(hello, window));
}

static u32 address(u8 *to, u32 kind, u32 index) {
	to[0] = (u8)kind;
	if (kind) {
		to[1] = kind == 4 ? 4 : 16;
		memset(to + 2, 0, to[1]);
		to[2] = kind == 4 ? 127 : 0xfd;
		to[1 + to[1]] = (u8)index;
		return 2u + to[1];
	}
	static const char *const names[] = {"box", "localhost", "db.example.", "a..b"};
	const char *name = names[index % 4];
	to[1] = (u8)text_size(name);
	memcpy(to + 2, name, to[1]);
	return 2u + to[1];
}

/* `how`: addresses and transport; `where`: what the server there does, a port of kernel.c. */
void host_open(u8 how, u8 where, bool on_trunk) {
	u8 payload[TAG_SIZE + MAX_OPEN];
	u8 *open = payload + (on_trunk ? TAG_SIZE : 0);
	if (h->count == STREAMS || !h->paths[on_trunk].is_there) return;
	u32 index = h->count, size = 4, count = 1 + (how & 3) % 3;
	struct host_stream *s = &h->streams[index];
	*s = (struct host_stream){.number = ++h->last_number, .udp = how >> 7, .on_trunk = on_trunk, .direct = -1};
	s->may_send = WINDOW;
	s->agent_may_send = h->window;
	open[0] = s->udp ? TRANSPORT_UDP : TRANSPORT_TCP;
	put_u16(open + 1, 3000u + where % 6);
	open[3] = (u8)count;
	for (u32 i = 0; i < count; i++) {
		u32 kind = how >> (2 + 2 * i) & 3;
		size += address(open + size, kind < 2 ? 4 : kind == 2 ? 6 : 0, kind == 3 ? how >> 2 : index);
	}
	if (on_trunk) {
		u8 message[HMAC_MOST], tag[DIGEST_SIZE];
		if (size > 60) return;
		put_u32(message, s->number);
		memcpy(message + 4, open, size);
		hmac_sha256(h->trunk_key, DIGEST_SIZE, message, 4 + size, tag);
		memcpy(payload, tag, TAG_SIZE);
		size += TAG_SIZE;
	}
	if (!say_frame(on_trunk, on_trunk ? SIGNED_OPEN : OPEN, s->number, payload, size)) return;
	h->count++;
	if (!on_trunk) return;
	h->signed_size = wire_header(h->signed_open, SIGNED_OPEN, 0, size, s->number) + size;
	memcpy(h->signed_open + HEADER_SIZE, payload, size);
}

void host_replay(bool wrong_tag) {
	if (!h->signed_size) return;
	if (wrong_tag) put_u32(h->signed_open + 4, h->last_number + 1);
	violate(1, true);
	say(1, h->signed_open, h->signed_size);
	h->signed_size = 0;
}

void host_data(u32 index, u32 size) {
	static u8 bytes[MAX_PAYLOAD];
	struct host_stream *s = stream_at(index);
	if (!s || size > sizeof bytes) return;
	if (s->udp ? size > 65507 : !size) path_of(s)->valid = false;
	for (u32 i = 0; i < size; i++) bytes[i] = byte_of(index, TO_SERVER, (u32)s->sent + i);
	bool goes_over = s->over || s->forgotten;
	break_rules(s->on_trunk, !goes_over && (size > s->may_send || s->ended_by_host || s->moved_by_host));
	if (!say_frame(s->on_trunk, DATA, s->number, bytes, size)) return;
	s->may_send -= lesser((u32)s->may_send, size);
	s->sent += size;
}

void host_value(u32 index, enum frame_type type, u32 value) {
	u8 payload[4];
	struct host_stream *s = stream_at(index);
	if (!s) return;
	put_u32(payload, value);
	violate(s->on_trunk, type == RESET ? value > MAX_ERRNO : !value || value > MAX_CREDIT);
	if (type == CREDIT) break_rules(s->on_trunk, !s->moved_by_host && s->agent_may_send + value > MAX_CREDIT);
	if (!say_frame(s->on_trunk, type, s->number, payload, sizeof payload)) return;
	if (type == RESET) s->forgotten = true;
	else s->agent_may_send += value;
}

void host_plain(u32 index, enum frame_type type) {
	struct host_stream *s = stream_at(index);
	if (!s) return;
	bool goes_over = s->over || s->forgotten;
	if (type == END) break_rules(s->on_trunk, !goes_over && s->ended_by_host);
	/* A MOVE may cross the loss of its connection; without a proof it is wrong. */
	if (type == MOVE) break_rules(s->on_trunk, !goes_over && (s->moved_by_host || s->direct < 0));
	if (!say_frame(s->on_trunk, type, s->number, NULL, 0)) return;
	if (type == END) s->ended_by_host = true;
	if (type != MOVE || s->moved_by_host) return;
	s->moved_by_host = true;
	s->ended_before_move = s->ended_by_host;
	if (s->direct >= 0) k->files[s->direct].at = k->files[s->direct].end = (u32)s->sent; /* there it goes on */
}

static void make_token(u8 *token) {
	memset(token, 0, TOKEN_SIZE);
	put_u32(token, 0xabcd0000u + ++h->tokens);
}

void host_direct(u32 index) {
	struct host_stream *s = stream_at(index);
	if (!s) return;
	bool goes_over = s->over || s->forgotten;
	/* The other path is not in order with this one: the stream may not be there yet. */
	violate(0, !h->asked_to_listen);
	break_rules(0, !goes_over && s->udp);
	make_token(s->token);
	s->disturbed |= s->direct >= 0;
	s->direct = -1;
	s->expects = say_frame(0, DIRECT, s->number, s->token, TOKEN_SIZE);
}

void host_ping(u32 path) {
	u8 payload[8] = {0};
	put_u32(payload, h->paths[path].pings + 1);
	if (say_frame(path, PING, 0, payload, sizeof payload)) h->paths[path].pings++;
}

void host_watch(u32 interval_ms, bool udp) {
	u8 payload[5];
	put_u32(payload, interval_ms);
	payload[4] = udp;
	say_frame(0, WATCH, 0, payload, sizeof payload);
}

/* `family` 0: listen no more. */
void host_listen(u8 family) {
	u8 payload[SECRET_SIZE + 1 + 16] = {0};
	break_rules(0, family && h->wants_listener);
	h->wants_listener = family;
	if (!family) {
		h->port = 0;
		say_frame(0, LISTEN, 0, NULL, 0);
		return;
	}
	memset(h->secret, (int)++h->tokens, SECRET_SIZE);
	memcpy(payload, h->secret, SECRET_SIZE);
	payload[SECRET_SIZE] = family;
	h->asked_to_listen |= say_frame(0, LISTEN, 0, payload, SECRET_SIZE + 1u + (family == 4 ? 4u : 16u));
}

void host_trunk(bool any) {
	violate(0, !h->asked_to_listen);
	if (any) make_token(h->trunk_token);
	h->wants_trunk = say_frame(0, TRUNK, 0, h->trunk_token, any ? TOKEN_SIZE : 0) && any;
	host_lost_trunk(); /* the one that there is */
}

/* -- connections ---------------------------------------------------------------------------------- */

static void mac_of(const u8 *secret, const char *label, const u8 *bytes, u32 size, u8 *mac) {
	u8 message[HMAC_MOST];
	u32 before = (u32)text_size(label);
	memcpy(message, label, before);
	memcpy(message + before, bytes, size);
	hmac_sha256(secret, SECRET_SIZE, message, before + size, mac);
}

/* `with`: a stream's token, the trunk's, or what is wrong; some stay short. Which stream, and whether an answer is due. */
u32 greeting_of(u8 with, u8 *to, u32 *index, bool *as_trunk, u32 *serial) {
	static const u8 none[TOKEN_SIZE];
	u32 which = h->count ? with / 4 % h->count : 0;
	*as_trunk = with % 4 == 3 && h->wants_trunk;
	const struct host_stream *s = *as_trunk ? NULL : stream_at(which);
	*index = s ? which : NOBODY;
	memcpy(to, *as_trunk ? h->trunk_token : s ? s->token : none, TOKEN_SIZE);
	memset(to + TOKEN_SIZE, with, 16);
	mac_of(h->secret, "autoforward direct host", to, 32, to + 32);
	*serial = *as_trunk || (s && s->expects) ? get_u32(to) : 0;
	if (with < 200) return 64;
	*serial = *as_trunk = false;
	to[32] ^= 1;
	return with < 225 ? 64 : with % 64;
}

void host_connects(u8 with) {
	if (h->port && k->backlog_count < sizeof k->backlog) k->backlog[k->backlog_count++] = with;
}

void host_lost_trunk(void) {
	h->paths[1].is_there = false;
	for (u32 i = 0; i < h->count; i++)
		if (h->streams[i].on_trunk) h->streams[i].over = h->streams[i].forgotten = true;
}

/* It answered a greeting as only the agent can. */
static void proven(struct file *f) {
	struct host_stream *s = stream_at(f->who);
	if (!f->entry && h->paths[0].valid) broken("a proof that nobody asked for", f->who, f->trunk);
	f->stale = f->entry != get_u32(f->trunk ? h->trunk_token : s ? s->token : h->secret);
	if (f->stale || !h->paths[0].valid) return;
	if (f->trunk ? !h->wants_trunk : !s->expects) broken("a token is used twice", f->who, f->trunk);
	if (!f->trunk) {
		s->expects = false;
		s->direct = (int)(f - k->files);
		return;
	}
	mac_of(f->secret, "autoforward trunk key", h->trunk_token, TOKEN_SIZE, h->trunk_key);
	h->wants_trunk = false;
	h->trunk_fd = (int)(f - k->files);
	h->paths[1] = (struct path_state){.is_there = true, .valid = true, .greeted = true};
	f->literal = (struct bytes){0, 0, LITERAL, k->large[1]};
}

void host_takes(struct file *f, const u8 *bytes, u32 size) {
	struct host_stream *s = stream_at(f->who);
	if (!f->direct) { /* a server */
		bool known = s && h->paths[0].valid && path_of(s)->valid;
		for (u32 i = 0; i < size; i++, f->held++)
			if (known && bytes[i] != byte_of(f->who, TO_SERVER, f->held))
				broken("a server gets something else than was said to it", f->who, f->held);
		if (s) s->taken = f->held;
		return;
	}
	for (; size && f->proof < DIGEST_SIZE; size--, bytes++)
		if (++f->proof == DIGEST_SIZE) proven(f);
	if (!size || f->stale || !h->paths[0].valid) return;
	if (f->trunk) {
		if (f - k->files == h->trunk_fd) host_read(1, bytes, size);
		return;
	}
	if (!path_of(s)->valid) return;
	if (!s->moved_by_host) broken("bytes on a direct connection before MOVE", f->who, size);
	if (s->forgotten) return;
	if (!s->moved_by_agent) { /* its MOVE waits on the path */
		s->got_early += size;
		return;
	}
	for (u32 i = 0; i < size; i++)
		if (bytes[i] != byte_of(f->who, TO_HOST, (u32)s->got++)) broken("a client gets something else than was said to it", f->who, 0);
}

/* -- what the agent says -------------------------------------------------------------------------- */

static void entries(const u8 *at, u32 size) {
	for (u32 i = ENTRY_SIZE; i < size; i += ENTRY_SIZE)
		if (memcmp(at + i - ENTRY_SIZE, at + i, ENTRY_SIZE) >= 0) broken("a snapshot is sorted, each once", i, size);
}

static void of_stream(u32 path, enum frame_type type, u32 number, const u8 *payload, u32 size) {
	struct host_stream *s = h->streams;
	while (s < h->streams + h->count && s->number != number) s++;
	if (s == h->streams + h->count || s->on_trunk != path) {
		if (h->paths[0].valid && h->paths[path].valid) broken("a frame of a stream that never was", number, type);
		return;
	}
	if (s->forgotten || !h->paths[0].valid || !h->paths[path].valid) return; /* it crossed the reset */
	u32 index = (u32)(s - h->streams), value = size == 4 ? get_u32(payload) : 0;
	if (s->over) broken("a frame after the stream's end", index, type);
	switch (type) {
	case OPENED:
	case REFUSED:
		if (s->answered) broken("an OPEN is answered twice", index, type);
		s->answered = true;
		s->over = type == REFUSED;
		break;
	case DATA:
		if (!s->answered) broken("DATA before OPENED", index, size);
		if (s->ended_by_agent || s->moved_by_agent) broken("DATA after EOF or MOVE", index, size);
		if (size > s->agent_may_send) broken("more DATA than credit", index, size);
		if (!size && !s->udp) broken("an empty DATA", index, size);
		s->agent_may_send -= size;
		for (u32 i = 0; i < size && !s->udp; i++)
			if (payload[i] != byte_of(index, TO_HOST, (u32)s->got++)) broken("a client gets something else than was said to it", index, i);
		break;
	case END:
		if (s->ended_by_agent) broken("EOF twice", index, type);
		s->ended_by_agent = true;
		if (s->udp) s->answered = s->over = true;
		break;
	case RESET:
		if (!s->disturbed && !k->faulty && path == 0) broken("a reset although nothing broke off", index, (long)value);
		s->answered = s->over = true;
		break;
	case CREDIT:
		s->given_back += value;
		s->may_send += value;
		if (!value || s->given_back > s->sent) broken("credit for what was not sent", index, value);
		break;
	case MOVE:
		if (s->moved_by_agent || !s->moved_by_host) broken("MOVE twice, or unasked", index, type);
		s->moved_by_agent = true;
		s->got += s->got_early;
		break;
	default: broken("a frame of a stream that is none", number, type);
	}
}

static void of_path(u32 path, enum frame_type type, u32 flags, const u8 *payload, u32 size) {
	struct path_state *p = &h->paths[path];
	if (path && type != PONG) broken("a frame that is not for a trunk", type, size);
	if (flags && (type != SNAPSHOT || flags > 3)) broken("flags", type, flags);
	switch (type) {
	case PONG:
		if (p->valid && (size != 8 || get_u32(payload) != ++p->pongs || p->pongs > p->pings)) broken("a PONG for each PING, in order", p->pongs, p->pings);
		break;
	case SNAPSHOT:
		if (size % ENTRY_SIZE || (!size && flags & SNAPSHOT_MORE)) broken("a snapshot's size", size, flags);
		entries(payload, size);
		break;
	case PROCESS:
		if (size < 12 || size > 12 + 1024) broken("a process's size", size, 0);
		break;
	case NETWORK:
		if (size < 3 || size > MAX_NETWORK) broken("a network namespace's size", size, 0);
		break;
	case LISTENING:
		if (size != 6 || !h->asked_to_listen) broken("listens unasked", size, 0);
		h->port = (u16)get_u16(payload);
		if (!h->port) h->wants_listener = false;
		break;
	case BYE:
		if (!size || !payload[0] || payload[0] > 3 || size > 256) broken("a farewell", size, 0);
		h->bye = true;
		break;
	default: broken("a frame that the agent does not say", type, size);
	}
}

void host_read(u32 path, const u8 *bytes, u32 size) {
	struct path_state *p = &h->paths[path];
	if (path && !p->is_there) return; /* we have let it go */
	while (size) {
		u32 need = !p->greeted ? HELLO_SIZE : p->have < HEADER_SIZE ? HEADER_SIZE : HEADER_SIZE + get_u16(p->frame + 2);
		u32 take = lesser(size, need - p->have);
		if (h->bye) broken("words after the farewell", size, 0);
		memcpy(p->frame + p->have, bytes, take);
		p->have += take, bytes += take, size -= take;
		if (!p->greeted) {
			u8 hello[HELLO_SIZE];
			wire_hello(hello, WINDOW);
			if (!h->said_hello || memcmp(hello, p->frame, p->have)) broken("its hello", p->have, h->said_hello);
			if (p->have == HELLO_SIZE) p->greeted = true, p->have = 0;
			continue;
		}
		if (p->have < HEADER_SIZE) return;
		u32 type = p->frame[0], length = get_u16(p->frame + 2), number = get_u32(p->frame + 4);
		if (p->have < HEADER_SIZE + length) continue;
		p->have = 0;
		if (number) {
			u32 right = type == OPENED ? 1 : type == REFUSED || type == RESET || type == CREDIT ? 4 : type == DATA ? length : 0;
			if (p->frame[1] || length != right) broken("a frame's size or flags", type, length);
			of_stream(path, type, number, p->frame + HEADER_SIZE, length);
		} else {
			of_path(path, type, p->frame[1], p->frame + HEADER_SIZE, length);
		}
	}
}
