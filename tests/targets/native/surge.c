// Allocates and frees a thousand times a second, what the first argument says (`malloc` or `mmap`), and leaks
// one in a hundred; from the first line on stdin on as fast as it can. It ends when stdin closes.

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE 4096

// Without this the compiler may leave the pair out.
static void *volatile seen;

static void __attribute__((noinline)) turn_block(int leaks)
{
	void *block = malloc(SIZE / 4);
	seen = block;
	if (!leaks)
		free(block);
}

static void __attribute__((noinline)) turn_mapping(int leaks)
{
	void *mapping = mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!leaks)
		munmap(mapping, SIZE);
}

int main(int argc, char **argv)
{
	void (*turn)(int) = argc > 1 && !strcmp(argv[1], "mmap") ? turn_mapping : turn_block;
	struct pollfd input = { .fd = 0, .events = POLLIN };
	int surges = 0;
	printf("ready %d\n", getpid());
	fflush(stdout);
	for (unsigned long i = 1;; i++) {
		// Nothing is leaked at full speed: that would not be a matter of minutes.
		turn(!surges && i % 100 == 0);
		if (surges && i % 4096)
			continue;
		if (poll(&input, 1, surges ? 0 : 1) <= 0)
			continue;
		char line[16];
		if (read(0, line, sizeof line) <= 0)
			return 0;
		surges = 1;
	}
}
