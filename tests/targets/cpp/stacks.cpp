// Every shape of stack that compiled code makes, at the bottom of each a mapping of one page, with the
// truth about it.
//
//   stacks              each shape once; then, for each line "plugin", a call into a library that is opened
//                       at the first of them
//   stacks paths N D    N mappings, each from a stack of its own, D calls below main
//   stacks leak N       N records that are never deleted, and ten times as many that are
//
// Prints "ready PID", waits for a line on stdin, works, prints the truth as one line of JSON and lives on
// until stdin closes. The truth of a shape is the functions that must be on its stack, innermost first; there
// may be others between them, but all the way out to `main`, or to where its thread was started.
//
// Built -O2 -fomit-frame-pointer, with its debug information in a file of its own.

#include <alloca.h>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>

#define SHAPE __attribute__((noinline, noipa))
// Nothing is called last, so that no frame is left before its callee runs.
#define STAY asm volatile("" ::: "memory")

static constexpr size_t PAGE = 4096;

static void check(bool is_right, const char *what)
{
    if (!is_right) {
        fprintf(stderr, "stacks: %s\n", what);
        _exit(1);
    }
}

// Inlined, so that its caller is the innermost function of the program.
static inline __attribute__((always_inline)) char *map_page()
{
    void *at = mmap(nullptr, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(at != MAP_FAILED, "mmap");
    return static_cast<char *>(at);
}

static std::string truth;

static void tell(const char *name, std::initializer_list<const char *> functions)
{
    truth += truth.empty() ? "" : ",";
    truth += "{\"shape\":\"" + std::string(name) + "\",\"functions\":[";
    const char *between = "";
    for (const char *function : functions) {
        truth += between + ("\"" + std::string(function) + "\"");
        between = ",";
    }
    truth += "]}";
}

// ---- frames of every form --------------------------------------------------------------------------

static SHAPE void recursion(int depth)
{
    if (depth == 0)
        map_page();
    else
        recursion(depth - 1);
    STAY;
}

// The size of the frame is not known: its end is found from the frame pointer.
static SHAPE void frame_of_any_size(size_t bytes)
{
    char *local = static_cast<char *>(alloca(bytes));
    memset(local, 1, bytes);
    map_page();
    asm volatile("" ::"r"(local) : "memory");
}

// The stack is realigned: the frame's end is stored in it.
static SHAPE void realigned_frame(size_t bytes)
{
    alignas(128) char local[256];
    char *more = static_cast<char *>(alloca(bytes));
    memset(local, 1, sizeof local);
    memset(more, 1, bytes);
    map_page();
    asm volatile("" ::"r"(local), "r"(more) : "memory");
}

static SHAPE void large_frame()
{
    char local[600000];
    memset(local, 1, sizeof local);
    map_page();
    asm volatile("" ::"r"(local) : "memory");
}

// All registers that a callee must keep are in use, the frame pointer as any other.
static SHAPE void busy_registers(long a, long b, long c, long d, long e, long f)
{
    long sum = 0;
    for (long i = 0; i < 3; i++) {
        sum += a * b + c * d + e * f + i;
        if (i == 1)
            map_page();
        asm volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(e), "+r"(f));
    }
    asm volatile("" ::"r"(sum));
}

static SHAPE void above_busy_registers(long x)
{
    busy_registers(x, x + 1, x + 2, x + 3, x + 4, x + 5);
    STAY;
}

// ---- through libraries ------------------------------------------------------------------------------

static SHAPE int compare(const void *a, const void *b)
{
    int x = *static_cast<const int *>(a), y = *static_cast<const int *>(b);
    static bool is_done;
    if (!is_done) {
        is_done = true;
        map_page();
    }
    return (x > y) - (x < y);
}

static SHAPE void sorts()
{
    int numbers[] = {5, 3, 9, 1, 7, 2, 8};
    qsort(numbers, 7, sizeof numbers[0], compare);
    STAY;
}

static SHAPE void on_signal(int)
{
    map_page();
    STAY;
}

static SHAPE void raises_signal()
{
    struct sigaction action = {};
    action.sa_handler = on_signal;
    check(sigaction(SIGUSR1, &action, nullptr) == 0 && raise(SIGUSR1) == 0, "raise");
    STAY;
}

// The handler has a stack of its own.
static SHAPE void raises_signal_on_another_stack()
{
    static char memory[1 << 16];
    stack_t stack = {};
    stack.ss_sp = memory;
    stack.ss_size = sizeof memory;
    struct sigaction action = {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_ONSTACK;
    check(sigaltstack(&stack, nullptr) == 0 && sigaction(SIGUSR2, &action, nullptr) == 0, "sigaltstack");
    check(raise(SIGUSR2) == 0, "raise");
    STAY;
}

static SHAPE void at_thread_start()
{
    map_page();
    STAY;
}

static SHAPE void calls_function_object(const std::function<void(int)> &function)
{
    function(3);
    STAY;
}

// ---- exceptions --------------------------------------------------------------------------------------

struct AtUnwinding {
    SHAPE ~AtUnwinding()
    {
        map_page();
        STAY;
    }
};

static SHAPE void throws(int depth)
{
    if (depth == 0)
        throw std::runtime_error("on purpose");
    throws(depth - 1);
    STAY;
}

static SHAPE void is_unwound()
{
    AtUnwinding local;
    throws(5);
    STAY;
}

static SHAPE void catches()
{
    try {
        is_unwound();
    } catch (const std::runtime_error &) {
        map_page();
    }
    STAY;
}

// ---- behind inlined calls ------------------------------------------------------------------------------

static void *kept[64];

template <typename T> static inline __attribute__((always_inline)) T *make_page(int place)
{
    kept[place] = map_page(); // the leak
    return static_cast<T *>(kept[place]);
}

static inline __attribute__((always_inline)) long *make_numbers(int place)
{
    long *numbers = make_page<long>(place); // the call of make_page
    numbers[0] = place;
    return numbers;
}

struct Cache {
    virtual ~Cache() = default;
    virtual SHAPE void fill(int place)
    {
        make_numbers(place); // the call of make_numbers
        STAY;
    }
};

// ---- a leak among other allocations ----------------------------------------------------------------------

struct Record {
    char bytes[4000];
};

static inline __attribute__((always_inline)) Record *new_record()
{
    return new Record; // the record
}

static inline __attribute__((always_inline)) void remember(Record **newest)
{
    *newest = new_record(); // the call of new_record
    STAY;
}

static SHAPE void handle(Record **newest)
{
    remember(newest); // the call of remember
    STAY;
}

static SHAPE void leaks(int count)
{
    static Record *newest;
    for (int i = 0; i < count; i++) {
        handle(&newest);
        for (int j = 0; j < 10; j++) {
            std::unique_ptr<Record> temporary(new Record);
            asm volatile("" ::"r"(temporary.get()) : "memory");
        }
    }
}

// ---- stacks in numbers ----------------------------------------------------------------------------------

// At each call the next of thirteen bits says which of two functions is called, again and again: any thirteen
// calls tell the path.
static SHAPE void left(unsigned path, int depth);

static SHAPE void right(unsigned path, int depth)
{
    unsigned next = path >> 1 | (path & 1) << 12;
    if (depth == 0)
        map_page();
    else if (path & 1)
        right(next, depth - 1);
    else
        left(next, depth - 1);
    STAY;
}

static SHAPE void left(unsigned path, int depth)
{
    unsigned next = path >> 1 | (path & 1) << 12;
    if (depth == 0)
        map_page();
    else if (path & 1)
        right(next, depth - 1);
    else
        left(next, depth - 1);
    STAY;
}

static SHAPE void each_shape(const char *self)
{
    std::unique_ptr<Cache> cache(new Cache);
    recursion(100);
    tell("recursion", {"recursion", "recursion", "recursion", "each_shape", "main"});
    frame_of_any_size(strlen(self) + 1000);
    tell("frame_of_any_size", {"frame_of_any_size", "each_shape", "main"});
    realigned_frame(strlen(self) + 1000);
    tell("realigned_frame", {"realigned_frame", "each_shape", "main"});
    large_frame();
    tell("large_frame", {"large_frame", "each_shape", "main"});
    above_busy_registers(strlen(self));
    tell("busy_registers", {"busy_registers", "above_busy_registers", "each_shape", "main"});
    sorts();
    tell("sort", {"compare", "qsort", "sorts", "each_shape", "main"});
    raises_signal();
    tell("signal", {"on_signal", "raise", "raises_signal", "each_shape", "main"});
    raises_signal_on_another_stack();
    tell("signal_stack", {"on_signal", "raise", "raises_signal_on_another_stack", "each_shape", "main"});
    std::thread(at_thread_start).join();
    tell("thread", {"at_thread_start", "start_thread"});
    calls_function_object([](int depth) { recursion(depth); });
    tell("function_object", {"recursion", "calls_function_object", "each_shape", "main"});
    catches();
    tell("destructor", {"AtUnwinding::~AtUnwinding", "is_unwound", "catches", "each_shape", "main"});
    tell("catch", {"catches", "each_shape", "main"});
    cache->fill(0);
    tell("inlined", {"map_page", "make_page<long", "make_numbers", "Cache::fill", "each_shape", "main"});
    STAY;
}

static SHAPE void call_plugin(const std::string &library)
{
    static void (*run)(void (*)());
    if (!run) {
        void *opened = dlopen(library.c_str(), RTLD_LAZY);
        check(opened != nullptr, "dlopen");
        run = reinterpret_cast<void (*)(void (*)())>(dlsym(opened, "plugin_run"));
        check(run != nullptr, "dlsym");
    }
    run([] {
        map_page();
        STAY;
    });
    STAY;
}

int main(int argc, char **argv)
{
    char line[64];
    printf("ready %d\n", getpid());
    fflush(stdout);
    check(fgets(line, sizeof line, stdin) != nullptr, "no line on stdin");
    if (argc == 4 && strcmp(argv[1], "paths") == 0) {
        int count = atoi(argv[2]), depth = atoi(argv[3]);
        for (int path = 0; path < count; path++)
            left(path, depth);
    } else if (argc == 3 && strcmp(argv[1], "leak") == 0) {
        leaks(atoi(argv[2]));
    } else {
        each_shape(argv[0]);
    }
    printf("{\"shapes\":[%s]}\n", truth.c_str());
    fflush(stdout);
    std::string library(argv[0]);
    library.replace(library.rfind('/') + 1, std::string::npos, "libplugin.so");
    while (fgets(line, sizeof line, stdin) != nullptr) {
        call_plugin(library);
        printf("called\n");
        fflush(stdout);
    }
}
