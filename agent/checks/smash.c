/* Writes as many bytes as it has arguments into an array of 16, and says that it came back from that. */
#include "sys.h"

int agent_main(int argc, char **argv);

static __attribute__((noinline)) int fill(int count) {
	char bytes[16];
	volatile char *at = bytes;
	for (int i = 0; i < count; i++) at[i] = 'x';
	return at[0];
}

int agent_main(int argc, char **argv) {
	static const char words[] = "came back\n";
	(void)argv;
	(void)fill(argc);
	sys_write(1, words, sizeof words - 1);
	return 0;
}
