// A library that is opened late: calls back, through frames without frame pointers.

static __attribute__((noinline, noipa)) void plugin_inner(void (*call)())
{
    call();
    asm volatile("" ::: "memory");
}

extern "C" __attribute__((noinline, noipa)) void plugin_run(void (*call)())
{
    plugin_inner(call);
    asm volatile("" ::: "memory");
}
