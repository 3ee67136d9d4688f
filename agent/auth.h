/* Proofs: the secret of LISTEN, signatures with it, and the HMAC below them. */
#ifndef AGENT_AUTH_H
#define AGENT_AUTH_H

#include "wire.h"

/* auth.c */
void auth_start(const u8 *secret); /* on LISTEN */
bool auth_asked(void);
void auth_sign(const char *label, const u8 *bytes, u32 size, u8 *mac);
bool differ(const u8 *a, const u8 *b, u32 size); /* in constant time */

/* sha256.c */
enum { DIGEST_SIZE = 32, HMAC_MOST = 64 };
/* At most 64 bytes of key, HMAC_MOST of message. */
void hmac_sha256(const u8 *key, u32 key_size, const u8 *message, u32 size, u8 *digest);

#endif
