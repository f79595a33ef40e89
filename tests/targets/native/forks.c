// Processes that a process makes, each with blocks of its own, and the truth about all of them.
//
//   forks
//
// Lines on stdin: "fork" makes four children, the first of which makes one of its own, and says their ids. "work"
// lets all of them allocate: the first two and the grandchild stay, the fourth becomes another program, and then the
// third ends; each frees its copy of a block that it has from its parent. When they are done the answer is a line of
// JSON: what each function has allocated, and what of that was freed. They end with their parent.

#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

enum { CHILDREN = 4, KEPT = 50, TURNS = 1000 };
enum site { PARENT, WORKER, TURNED, GRANDCHILD, ENDED, SITES };
static const char *const names[SITES] = {
	"parent_keeps", "worker_keeps", "worker_turns", "grandchild_keeps", "ended_keeps",
};

// Of all processes.
struct shared {
	struct { atomic_ullong allocs, alloc_bytes, frees, free_bytes; } counts[SITES];
	atomic_int grandchild, go, done;
};
static struct shared *shared;

// The fourth child holds the end to write to, until it becomes another program.
static int other[2];

// Without this the compiler may know what `malloc` does and leave it out.
static void *volatile seen;

static void count(enum site site, size_t size, int frees)
{
	shared->counts[site].allocs++;
	shared->counts[site].alloc_bytes += size;
	shared->counts[site].frees += frees;
	shared->counts[site].free_bytes += size * frees;
}

static NOINLINE void *parent_keeps(void) { seen = malloc(100); count(PARENT, 100, 0); return seen; }
static NOINLINE void worker_keeps(void) { seen = malloc(300); count(WORKER, 300, 0); }
static NOINLINE void grandchild_keeps(void) { seen = malloc(500); count(GRANDCHILD, 500, 0); }
static NOINLINE void ended_keeps(void) { seen = malloc(700); count(ENDED, 700, 1); }
static NOINLINE void worker_turns(void) { free(seen = malloc(64)); count(TURNED, 64, 1); }

static void wait_for_work(void)
{
	while (!shared->go)
		usleep(1000);
}

// Makes a process that ends with this one; true in the new one.
static int make(pid_t *pid)
{
	*pid = fork();
	if (*pid == 0)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	return *pid == 0;
}

static void child(int n, void *inherited)
{
	pid_t grandchild;
	if (n != 2)
		close(other[0]);
	if (n != 3)
		close(other[1]);
	if (n == 0 && make(&grandchild)) {
		shared->grandchild = getpid();
		wait_for_work();
		for (int i = 0; i < KEPT; i++)
			grandchild_keeps();
		free(inherited);
		shared->done++;
		for (;;)
			pause();
	}
	wait_for_work();
	for (int i = 0; i < TURNS; i++)
		worker_turns();
	for (int i = 0; i < KEPT; i++)
		n < 2 ? worker_keeps() : ended_keeps();
	free(inherited);
	shared->done++;
	// After the other one has become another program: what happens last must be seen, too.
	char none;
	if (n == 2)
		_exit(read(other[0], &none, 1) != 0);
	if (n == 3)
		execl("/proc/self/exe", "forks", "another", NULL);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "another")) {
		for (int i = 0; i < KEPT; i++)
			seen = malloc(900);
		for (;;)
			pause();
	}
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	static char line[64], out[1024];
	setvbuf(stdin, NULL, _IONBF, 0);
	setvbuf(stdout, out, _IOLBF, sizeof out);
	pid_t pids[CHILDREN] = { 0 };
	printf("{\"ready\": %d}\n", getpid());
	while (fgets(line, sizeof line, stdin)) {
		if (!strcmp(line, "fork\n")) {
			void *inherited = parent_keeps();
			if (pipe2(other, O_CLOEXEC) != 0)
				return 1;
			for (int n = 0; n < CHILDREN; n++)
				if (make(&pids[n]))
					child(n, inherited);
			close(other[1]);
			while (!shared->grandchild)
				usleep(1000);
			printf("{\"asked\": \"fork\", \"pids\": [%d, %d, %d, %d, %d]}\n", pids[0], pids[1], pids[2],
			       pids[3], shared->grandchild);
		} else {
			for (int i = 0; i < KEPT; i++)
				parent_keeps();
			shared->go = 1;
			while (shared->done < CHILDREN + 1)
				usleep(1000);
			int status;
			waitpid(pids[2], &status, 0);
			if (status != 0)
				return 1;
			printf("{\"asked\": \"work\"");
			for (int s = 0; s < SITES; s++)
				printf(", \"%s\": [%llu, %llu, %llu, %llu]", names[s], shared->counts[s].allocs,
				       shared->counts[s].alloc_bytes, shared->counts[s].frees, shared->counts[s].free_bytes);
			printf("}\n");
		}
	}
}
