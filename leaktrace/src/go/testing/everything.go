// Links the parts of the runtime that leaktrace looks at: a type that nothing uses is not in the debug
// information.
package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"sync"
	"time"
)

type node struct{ next *node }

func main() {
	var lock sync.Mutex
	done := make(chan bool)
	go func() {
		lock.Lock()
		defer lock.Unlock()
		done <- true
	}()
	select {
	case <-done:
	case <-time.After(time.Second):
	}
	n := &node{}
	runtime.SetFinalizer(n, func(*node) {})
	debug.FreeOSMemory()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	pprof.SetGoroutineLabels(nil)
	pprof.Lookup("heap").WriteTo(os.Stdout, 1)
	pprof.Lookup("goroutine").WriteTo(os.Stdout, 1)
}
