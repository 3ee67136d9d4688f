/* Dispatch the host's frames. */
#include "streams.h"

/* Returns what is wrong, or NULL. */
static const char *handle(const struct event *e, struct path *from) {
	u8 hello[HELLO_SIZE];
	switch (e->type) {
	case HELLO:
		streams_start(e->value);
		out_bytes(from, hello, wire_hello(hello, WINDOW));
		return NULL;
	case PING: return out_frame(from, PONG, 0, 0, e->bytes, e->size), NULL;
	case PONG: return NULL;
	case WATCH: return watch_start(e->value, e->udp), NULL;
	case OPEN: return stream_open(e->stream, e->bytes, e->size, from);
	case SIGNED_OPEN:
		if (!trunk_signed(e)) return "signature";
		return stream_open(e->stream, e->bytes + TAG_SIZE, e->size - TAG_SIZE, from);
	case LISTEN: return listener_start(e);
	case TRUNK: return trunk_expect(e->bytes, e->size);
	default: break;
	}
	struct stream *s = stream_find(e->stream);
	if (e->type == DIRECT) return direct_expect(s, e->bytes);
	if (!s || s->path != from) return NULL; /* it has ended; the frames crossed */
	switch (e->type) {
	case DATA: return stream_data(s, e);
	case END: return stream_end(s);
	case RESET: return stream_cut(s), NULL;
	case MOVE: return direct_move(s);
	default: return stream_credit(s, e->value);
	}
}

long path_read(struct path *from, const char **error) {
	static u8 input[PATH_INPUT];
	long size = sys_read(from->in, input, sizeof input);
	const u8 *at = input;
	size_t left = size > 0 ? (size_t)size : 0;
	struct event event;
	*error = NULL;
	while (left && wire_next(&from->decoder, &at, &left, &event, error))
		if ((*error = handle(&event, from))) break;
	return size;
}

void trunk_ready(u32 events) {
	const char *error;
	if (trunk_path.in < 0 || !(events & ~(u32)EPOLLOUT)) return; /* queued output is written before the next wait */
	long size = path_read(&trunk_path, &error);
	if (error || (size <= 0 && size != -EAGAIN && size != -EINTR)) trunk_end();
}
