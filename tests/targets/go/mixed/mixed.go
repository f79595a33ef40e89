// Mixed is half C: Go calls C, which leaks by malloc, and a thread of C's calls Go, which leaks in the
// Go heap and, through C again, a mapping. Every second it prints what each of them has leaked.
//
// The lines "resume" and "pause" on stdin start and stop the leaks; they are answered when that is done.
// At first nothing leaks.
package main

// #include "mixed.h"
import "C"

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"
)

const (
	largeBytes   = 1 << 20
	smallBytes   = 64 << 10
	mappingBytes = 256 << 10
	goBytes      = 512 << 10
)

// serveProfiles is set by the file that the build tag `pprof` adds.
var serveProfiles func(address string) string

// state is what has leaked so far, in calls.
var state struct {
	sync.Mutex
	leaks            bool
	native, callback int
	kept             [][]byte
}

//export onTick
func onTick() C.int {
	state.Lock()
	defer state.Unlock()
	if state.leaks {
		keepInGo()
		C.leak_mapping(mappingBytes)
		state.callback++
	}
	return 1
}

//go:noinline
func keepInGo() {
	state.kept = append(state.kept, make([]byte, goBytes)) // the leak in the Go heap
}

//go:noinline
func callNative() {
	C.leak_large(largeBytes)
	C.leak_small(smallBytes)
}

// report prints the truth.
func report(asked string) {
	state.Lock()
	defer state.Unlock()
	fmt.Printf(`{"asked":%q,"t_s":%.3f,"large_bytes":%d,"small_bytes":%d,"mapping_bytes":%d,"go_bytes":%d}`+"\n",
		asked, time.Since(started).Seconds(),
		state.native*largeBytes, state.native*smallBytes, state.callback*mappingBytes,
		len(state.kept)*goBytes)
}

var started = time.Now()

// The first thread allocates from the program break, others from arenas of their own.
func init() { runtime.LockOSThread() }

func main() {
	C.start_clock()
	lines := make(chan string)
	go func() {
		for scanner := bufio.NewScanner(os.Stdin); scanner.Scan(); {
			lines <- scanner.Text()
		}
		close(lines)
	}()
	// What a stall holds up is made up for.
	const tick = 100 * time.Millisecond
	next := time.Now().Add(tick)
	timer := time.NewTimer(tick)
	for count := 0; ; count++ {
		select {
		case line, open := <-lines:
			if !open {
				return
			}
			state.Lock()
			state.leaks = line == "resume"
			state.Unlock()
			report(line)
		case <-timer.C:
			next = next.Add(tick)
			timer.Reset(time.Until(next))
			state.Lock()
			if state.leaks {
				callNative()
				state.native++
			}
			state.Unlock()
			if count%5 == 0 {
				runtime.GC()
			}
			if count%10 == 0 {
				report("")
			}
		}
	}
}
