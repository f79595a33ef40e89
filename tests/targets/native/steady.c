// Allocates and frees at a steady rate, from 512 places in turn: five pairs of malloc and free a millisecond, which are
// 10,000 calls a second. One block in a hundred is kept. Says each second how many calls it made; ends when stdin closes.
//
//   steady [wait]
//
// With `wait` it begins at the first line on stdin.

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PLACES_BITS = 9, PAIRS_A_MS = 5, KEPT_ONE_IN = 100 };

// Without this the compiler may leave the pair out.
static void *volatile seen;
static unsigned long calls;

static void __attribute__((noinline)) work(void)
{
	static unsigned long turn;
	void *block = malloc(200);
	seen = block;
	calls++;
	if (++turn % KEPT_ONE_IN == 0)
		return;
	free(block);
	calls++;
}

// The bits of `place` are the way to the work: another place, another stack.
static void __attribute__((noinline)) go(unsigned place, int depth)
{
	if (depth == 0)
		work();
	else if (place & 1)
		go(place >> 1, depth - 1);
	else
		go(place >> 1, depth - 1);
	__asm__ volatile(""); // no tail call
}

int main(int argc, char **argv)
{
	struct pollfd input = { .fd = 0, .events = POLLIN };
	struct timespec next;
	char line[64];
	unsigned place = 0;
	unsigned long before = 0;
	printf("ready %d\n", getpid());
	fflush(stdout);
	if (argc > 1 && strcmp(argv[1], "wait") == 0 && read(0, line, sizeof line) <= 0)
		return 0;
	clock_gettime(CLOCK_MONOTONIC, &next);
	for (unsigned long ms = 1;; ms++) {
		for (int i = 0; i < PAIRS_A_MS; i++)
			go(place++ % (1 << PLACES_BITS), PLACES_BITS);
		next.tv_nsec += 1000000;
		if (next.tv_nsec >= 1000000000) {
			next.tv_nsec -= 1000000000;
			next.tv_sec++;
		}
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
		if (ms % 1000)
			continue;
		int length = snprintf(line, sizeof line, "{\"calls_per_s\":%lu}\n", calls - before);
		before = calls;
		if (write(1, line, length) != length || (poll(&input, 1, 0) > 0 && read(0, line, sizeof line) <= 0))
			return 0;
	}
}
