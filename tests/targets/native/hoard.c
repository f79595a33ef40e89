// From the first line on stdin on keeps a block of 64 KiB each millisecond, and how many there are in a file, which is
// still there when this has been killed. It ends when stdin closes.
//
//   hoard FILE [MAPPINGS]
//
// Has so many mappings before, every second one of its own code.

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE 65536

static void __attribute__((noinline)) hoard(void)
{
	static char **kept;
	char **block = malloc(SIZE);
	if (!block)
		exit(1);
	*block = (char *)kept;
	kept = block;
	memset(block + 1, 1, SIZE - sizeof *block);
}

// Neighbours differ, so that the kernel keeps each as a mapping of its own.
static void map(long mappings)
{
	int code = open("/proc/self/exe", O_RDONLY);
	for (long i = 0; i < mappings; i++) {
		void *at = i % 2 ? mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, code, 0)
				 : mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (at == MAP_FAILED)
			exit(1);
	}
	close(code);
}

int main(int argc, char **argv)
{
	int file = argc > 1 ? open(argv[1], O_RDWR) : -1;
	volatile unsigned long *count = mmap(NULL, sizeof *count, PROT_WRITE, MAP_SHARED, file, 0);
	struct pollfd input = { .fd = 0, .events = POLLIN };
	char line[16];
	if (count == MAP_FAILED)
		return 1;
	map(argc > 2 ? atol(argv[2]) : 0);
	printf("ready %d\n", getpid());
	fflush(stdout);
	if (read(0, line, sizeof line) <= 0)
		return 0;
	for (;;) {
		if (poll(&input, 1, 1) > 0 && read(0, line, sizeof line) <= 0)
			return 0;
		hoard();
		++*count;
	}
}
