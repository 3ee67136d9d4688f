/* The secret of LISTEN, on which the host's proofs rest. */
#include "auth.h"

static bool asked;
static u8 secret[SECRET_SIZE];

void auth_start(const u8 *bytes) {
	memcpy(secret, bytes, sizeof secret);
	asked = true;
}

bool auth_asked(void) { return asked; }

void auth_sign(const char *label, const u8 *bytes, u32 size, u8 *mac) {
	u8 message[HMAC_MOST];
	u32 before = (u32)text_size(label);
	memcpy(message, label, before);
	memcpy(message + before, bytes, size);
	hmac_sha256(secret, sizeof secret, message, before + size, mac);
}

bool differ(const u8 *a, const u8 *b, u32 size) {
	u32 found = 0;
	while (size--) found |= (u32)(a[size] ^ b[size]);
	return found != 0;
}
