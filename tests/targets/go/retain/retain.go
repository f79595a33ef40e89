// Retain keeps objects alive in each way that leaks are made of, each from a function of its own that
// is named after it, and lets go of some. The sampler takes every object, and no collection runs once
// all stand where they should: what has been let go of is still there then, and nothing keeps it.
//
// It says on stdout when it is ready, and again for each line on stdin; it ends when stdin closes.
package main

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"time"
)

func init() { runtime.MemProfileRate = 1 }

// each is the number of objects of each kind.
const each = 64

// payload is what is kept: 1 KiB, a size class of its own.
type payload struct {
	next *payload
	_    [1008]byte
}

// bytes is kept too: it has no pointers.
type bytes [1024]byte

// named wraps a payload, for finalizers.
type named struct{ of *payload }

var (
	globalMap   = map[int]*payload{}
	globalBytes []*bytes
	syncMap     sync.Map
	growing     []*payload
	callbacks   []func()
	queue       = make(chan *payload, each)
	list        *payload
	anchors     []*int
	forever     = make(chan struct{})
	started     sync.WaitGroup
)

//go:noinline
func inGlobalMap() *payload { return &payload{} }

//go:noinline
func inGlobalBytes() *bytes { return &bytes{} }

//go:noinline
func inSyncMap() *payload { return &payload{} }

//go:noinline
func inGrowingSlice() *payload { return &payload{} }

//go:noinline
func onStack() *payload { return &payload{} }

//go:noinline
func inForgotten() *payload { return &payload{} }

//go:noinline
func inTimer() *payload { return &payload{} }

//go:noinline
func inTicker() *payload { return &payload{} }

//go:noinline
func inCallback() *payload { return &payload{} }

//go:noinline
func inChannel() *payload { return &payload{} }

//go:noinline
func inList() *payload { return &payload{} }

//go:noinline
func inFinalizer() *payload { return &payload{} }

//go:noinline
func inFinalizerQueue() *payload { return &payload{} }

//go:noinline
func inNothing() *payload { return &payload{} }

// hold keeps what it is given on its stack.
func hold(p *payload) {
	started.Done()
	<-forever // hold blocks here
	runtime.KeepAlive(p)
}

// forget keeps what it is given on its stack, and waits for what nobody can do: nobody else has the channel.
func forget(p *payload, never chan struct{}) {
	started.Done()
	<-never // forget blocks here
	runtime.KeepAlive(p)
}

// tick keeps what it is given on its stack, for a ticker that nobody stops.
func tick(p *payload) {
	ticker := time.NewTicker(time.Hour)
	started.Done()
	for range ticker.C { // tick blocks here
		runtime.KeepAlive(p)
	}
}

func use(p *payload) { p.next = p.next }

// fill makes everything but garbage, in a goroutine of its own: its stack goes with it.
func fill() {
	never := make(chan struct{})
	for i := 0; i < each; i++ {
		globalMap[i] = inGlobalMap()
		globalBytes = append(globalBytes, inGlobalBytes())
		syncMap.Store(i, inSyncMap())
		growing = append(growing, inGrowingSlice())
		started.Add(3)
		go hold(onStack())
		go forget(inForgotten(), never)
		go tick(inTicker())
		timed := inTimer()
		time.AfterFunc(time.Hour, func() { use(timed) })
		called := inCallback()
		callbacks = append(callbacks, func() { use(called) })
		queue <- inChannel()
		next := inList()
		next.next, list = list, next
		anchor, finalized := new(int), inFinalizer()
		anchors = append(anchors, anchor)
		runtime.SetFinalizer(anchor, func(*int) { use(finalized) })
		runtime.SetFinalizer(&named{inFinalizerQueue()}, func(n *named) { <-forever })
	}
}

// drop makes garbage: lists, and some that refer to what is kept.
func drop() {
	var head *payload
	for i := 0; i < each; i++ {
		next := inNothing()
		next.next = head
		head = next
	}
	head.next = list
}

// apart runs f and waits for it; nothing of its stack is left.
func apart(f func()) {
	done := make(chan struct{})
	go func() {
		f()
		close(done)
	}()
	<-done
}

func main() {
	apart(fill)
	started.Wait()
	// The first collection finds what the finalizers wait for dead, and queues them.
	runtime.GC()
	runtime.GC()
	debug.SetGCPercent(-1)
	apart(drop)
	say := func() {
		line, err := json.Marshal(map[string]any{"pid": os.Getpid(), "each": each})
		if err != nil {
			panic(err)
		}
		os.Stdout.Write(append(line, '\n'))
	}
	say()
	lines := bufio.NewReader(os.Stdin)
	for {
		if _, err := lines.ReadString('\n'); err == io.EOF {
			return
		}
		say()
	}
}
