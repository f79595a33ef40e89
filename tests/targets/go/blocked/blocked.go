// Blocked has a goroutine, or several, for each way of waiting, each in a function of its own that
// is named after it; some that run all the time, and some that come and go. It says on stdout when
// all of them stand where they should, and again for each line on stdin; it ends when stdin closes.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// blocker is one way of waiting.
type blocker struct {
	name string
	// wait blocks for ever.
	wait func()
}

// tagged is what a channel here carries: 24 bytes an element.
type tagged struct{ kind, from, to uint64 }

var (
	sends      = make(chan tagged)
	fullSends  = make(chan tagged, 3)
	receives   = make(chan tagged)
	nilChannel chan tagged
	left       = make(chan tagged)
	right      = make(chan tagged, 2)
	mutex      sync.Mutex
	written    sync.RWMutex // a writer holds it
	read       sync.RWMutex // a reader holds it
	group      sync.WaitGroup
	condition  = sync.NewCond(&sync.Mutex{})
	pipe       [2]int
	connection net.Conn
	peer       net.Conn // never writes
)

func chanSend()     { sends <- tagged{kind: 1} }     // chanSend blocks here
func fullChanSend() { fullSends <- tagged{kind: 2} } // fullChanSend blocks here
func chanReceive()  { <-receives }                   // chanReceive blocks here
func nilSend()      { nilChannel <- tagged{} }       // nilSend blocks here
func nilReceive()   { <-nilChannel }                 // nilReceive blocks here
func selectEmpty()  { select {} }                    // selectEmpty blocks here
func mutexLock()    { mutex.Lock() }                 // mutexLock blocks here
func readLock()     { written.RLock() }              // readLock blocks here
func writeLock()    { read.Lock() }                  // writeLock blocks here
func groupWait()    { group.Wait() }                 // groupWait blocks here
func sleep()        { time.Sleep(time.Hour) }        // sleep blocks here

func selectTwo() {
	select { // selectTwo blocks here
	case left <- tagged{}:
	case <-right:
	}
}

func conditionWait() {
	condition.L.Lock()
	condition.Wait() // conditionWait blocks here
}

func networkRead() {
	var buffer [16]byte
	connection.Read(buffer[:]) // networkRead blocks here
}

// systemCall reads from a pipe that the poller does not know, so that the thread itself waits.
func systemCall() {
	var buffer [16]byte
	syscall.Read(pipe[0], buffer[:]) // systemCall blocks here
}

// deep blocks far from the end of its stack.
func deep(levels int) int {
	if levels == 0 {
		<-receives // deep blocks here
		return 0
	}
	return deep(levels-1) + 1
}

// wide blocks below a frame that is larger than a page.
func wide() { widen(new(int)) }

//go:noinline
func widen(at *int) {
	var table [2048]uint64
	table[*at] = 1
	<-receives // wide blocks here
	*at = int(table[*at])
}

var blockers = []blocker{
	{"chanSend", chanSend},
	{"fullChanSend", fullChanSend},
	{"chanReceive", chanReceive},
	{"nilSend", nilSend},
	{"nilReceive", nilReceive},
	{"selectTwo", selectTwo},
	{"selectEmpty", selectEmpty},
	{"mutexLock", mutexLock},
	{"readLock", readLock},
	{"writeLock", writeLock},
	{"groupWait", groupWait},
	{"conditionWait", conditionWait},
	{"sleep", sleep},
	{"networkRead", networkRead},
	{"systemCall", systemCall},
	{"deep", func() { deep(200) }},
	{"wide", wide},
}

var started sync.WaitGroup

func start(b blocker, count int) {
	for i := 0; i < count; i++ {
		started.Add(1)
		go func() {
			started.Done()
			b.wait()
		}()
	}
}

// spin runs all the time.
func spin(turns *atomic.Uint64) {
	for {
		turns.Add(1)
	}
}

// watch notes by how much the scheduler was late at worst.
func watch(worst *atomic.Int64) {
	const pause = time.Millisecond
	for {
		before := time.Now()
		time.Sleep(pause)
		if late := int64(time.Since(before) - pause); late > worst.Load() {
			worst.Store(late)
		}
	}
}

// churn starts goroutines that end at once, as fast as one can but for the pauses.
func churn(ended *atomic.Uint64, pause time.Duration) {
	for ; ; time.Sleep(pause) {
		var batch sync.WaitGroup
		for i := 0; i < 16; i++ {
			batch.Add(1)
			go func() {
				ended.Add(1)
				batch.Done()
			}()
		}
		batch.Wait()
	}
}

func prepare() error {
	for i := 0; i < cap(fullSends); i++ {
		fullSends <- tagged{}
	}
	mutex.Lock()
	written.Lock()
	read.RLock()
	group.Add(1)
	if err := syscall.Pipe(pipe[:]); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	accepted := make(chan error, 1)
	go func() {
		var err error
		connection, err = listener.Accept()
		accepted <- err
	}()
	if peer, err = net.Dial("tcp", listener.Addr().String()); err != nil {
		return err
	}
	return <-accepted
}

func main() {
	count := flag.Int("count", 3, "goroutines for each way of waiting")
	spinners := flag.Int("spin", 1, "goroutines that run all the time")
	churners := flag.Int("churn", 1, "goroutines that start others all the time")
	pause := flag.Duration("churn-pause", 0, "how long they wait after each sixteen")
	senders := flag.Int("senders", 0, "further goroutines that block in chanSend")
	flag.Parse()
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "failed to prepare:", err)
		os.Exit(1)
	}
	for _, b := range blockers {
		start(b, *count)
	}
	start(blockers[0], *senders)
	started.Wait()
	// Each has begun; give the last of them the time to reach its line.
	time.Sleep(200 * time.Millisecond)
	var turns, ended atomic.Uint64
	for i := 0; i < *spinners; i++ {
		go spin(&turns)
	}
	for i := 0; i < *churners; i++ {
		go churn(&ended, *pause)
	}
	var worst atomic.Int64
	go watch(&worst)
	say := func() {
		line, err := json.Marshal(map[string]any{
			"pid": os.Getpid(), "goroutines": runtime.NumGoroutine(), "blockers": len(blockers),
			"turns": turns.Load(), "ended": ended.Load(),
			"worst_gap_ms": float64(worst.Swap(0)) / 1e6,
		})
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
