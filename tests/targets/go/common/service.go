// What the sample services have in common: a bounded cache, garbage, and the truth about themselves.
// One file, linked into each service's folder, so that a service stays one `main` package that any
// Go from 1.19 on builds without a module.

package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"
)

// serveProfiles is set by the file that the build tag `pprof` adds. It says on which address it serves.
var serveProfiles func(address string) string

// nativeWork is set by the file that a build with cgo adds.
var nativeWork func()

// leaker is the part that differs between the services.
type leaker interface {
	// leak leaks about `bytes` more, in whole objects, and says how many bytes it took.
	leak(bytes int64) int64
	// leaked is what the leaking line has allocated and nothing will ever free, by size class.
	leaked() (bytes, objects int64)
}

// service holds the settings every sample service has.
type service struct {
	leakRate    int64
	leakLimit   int64
	cacheBytes  int64
	cacheRate   int64
	garbageRate int64
	httpAddress string
	gcPercent   int

	started time.Time
	cache   *sessionCache
	garbage int64
	paused  bool
}

// truth is one line of output.
type truth struct {
	Ready         bool    `json:"ready,omitempty"`
	Asked         string  `json:"asked,omitempty"`
	PID           int     `json:"pid"`
	Seconds       float64 `json:"t_s"`
	LeakedBytes   int64   `json:"leaked_bytes"`
	LeakedObjects int64   `json:"leaked_objects"`
	CacheBytes    int64   `json:"cache_bytes"`
	GarbageBytes  int64   `json:"garbage_bytes"`
	Goroutines    int     `json:"goroutines"`
	HeapAlloc     uint64  `json:"heap_alloc"`
	NumGC         uint32  `json:"num_gc"`
	HTTP          string  `json:"http,omitempty"`
	HeapInuse     uint64  `json:"heap_inuse"`
	HeapIdle      uint64  `json:"heap_idle"`
	HeapReleased  uint64  `json:"heap_released"`
	StackSys      uint64  `json:"stack_sys"`
	RuntimeSys    uint64  `json:"runtime_sys"`
}

// newService declares the flags; `leakRate` and `leakLimit` are their defaults, in bytes.
func newService(leakRate, leakLimit int64) *service {
	s := &service{}
	flag.Int64Var(&s.leakRate, "leak-bytes-per-s", leakRate, "bytes leaked each second")
	flag.Int64Var(&s.leakLimit, "leak-limit-bytes", leakLimit, "stop leaking here and stay alive; 0: never")
	flag.Int64Var(&s.cacheBytes, "cache-bytes", 16<<20, "bound of the session cache")
	flag.Int64Var(&s.cacheRate, "cache-bytes-per-s", 4<<20, "sessions replaced each second, in bytes")
	flag.Int64Var(&s.garbageRate, "garbage-bytes-per-s", 128<<20, "short-lived bytes each second")
	flag.IntVar(&s.gcPercent, "gc-percent", 100, "GOGC: lower collects more often and takes less memory")
	flag.StringVar(&s.httpAddress, "http", "", "serve /debug/pprof here (needs the build tag pprof)")
	return s
}

// run works until stdin closes or a signal asks it to stop. It prints the truth every second, and
// at once when a line comes in on stdin, which it repeats as `asked`. The lines "pause" and "resume"
// stop and start its work before that, "gc" collects twice: then the heap profile holds all there is.
func (s *service) run(l leaker) {
	if s.httpAddress != "" {
		if serveProfiles == nil {
			fmt.Fprintln(os.Stderr, "-http needs a build with -tags pprof")
			os.Exit(2)
		}
		s.httpAddress = serveProfiles(s.httpAddress)
	}
	debug.SetGCPercent(s.gcPercent)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	lines := readLines()

	s.started = time.Now()
	s.cache = newSessionCache(s.cacheBytes)

	work := time.NewTicker(10 * time.Millisecond)
	second := time.NewTicker(time.Second)
	var leaked, admitted pace
	var idle time.Duration // how long it was paused, to a tick
	last, now := s.started, s.started
	for ready := false; ; {
		select {
		case <-stop:
			return
		case line, open := <-lines:
			if !open {
				return
			}
			switch line {
			case "pause":
				s.paused = true
			case "resume":
				s.paused = false
			case "gc":
				runtime.GC()
				runtime.GC()
			}
			s.print(l, truth{Asked: line})
		case <-second.C:
			s.print(l, truth{})
		case <-work.C:
			last, now = now, time.Now()
			if s.paused {
				idle += now.Sub(last)
				continue
			}
			elapsed := time.Since(s.started) - idle
			owed := leaked.owed(elapsed, s.leakRate)
			if total, _ := l.leaked(); s.leakLimit > 0 && owed > s.leakLimit-total {
				owed = s.leakLimit - total
			}
			leaked.done(l.leak(owed))
			admitted.done(s.cache.admit(admitted.owed(elapsed, s.cacheRate)))
			s.litter(elapsed)
			if nativeWork != nil {
				nativeWork()
			}
			if !ready {
				ready = true
				s.print(l, truth{Ready: true})
			}
		}
	}
}

// litter makes the garbage that is due: requests read, answered and forgotten.
func (s *service) litter(elapsed time.Duration) {
	due := pace{s.garbage}
	for owed := due.owed(elapsed, s.garbageRate); owed > 0; owed -= requestBytes {
		handleRequest()
		s.garbage += requestBytes
	}
}

func (s *service) print(l leaker, t truth) {
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	t.PID = os.Getpid()
	t.Seconds = time.Since(s.started).Seconds()
	t.LeakedBytes, t.LeakedObjects = l.leaked()
	t.CacheBytes = s.cache.bytes()
	t.GarbageBytes = s.garbage
	t.Goroutines = runtime.NumGoroutine()
	t.HeapAlloc = memory.HeapAlloc
	t.NumGC = memory.NumGC
	t.HTTP = s.httpAddress
	t.HeapInuse = memory.HeapInuse
	t.HeapIdle = memory.HeapIdle
	t.HeapReleased = memory.HeapReleased
	t.StackSys = memory.StackSys
	t.RuntimeSys = memory.MSpanSys + memory.MCacheSys + memory.BuckHashSys + memory.GCSys + memory.OtherSys
	line, err := json.Marshal(t)
	if err != nil {
		panic(err)
	}
	os.Stdout.Write(append(line, '\n'))
}

// readLines hands on the lines of stdin; the channel closes with it.
func readLines() <-chan string {
	lines := make(chan string)
	go func() {
		for scanner := bufio.NewScanner(os.Stdin); scanner.Scan(); {
			lines <- scanner.Text()
		}
		close(lines)
	}()
	return lines
}

// pace says how much of a steady rate is due.
type pace struct{ sum int64 }

// owed is at most half a second's worth, so that a stall is not made up for in one go; of a stall of some seconds
// the rest follows, else the rate would rightly seem to fall.
func (p *pace) owed(elapsed time.Duration, rate int64) int64 {
	owed := int64(elapsed.Seconds()*float64(rate)) - p.sum
	if most := 5 * rate; owed > most {
		p.sum += owed - most
	}
	if most := rate / 2; owed > most {
		return most
	}
	return owed
}

func (p *pace) done(amount int64) { p.sum += amount }

// sessionCache is bounded: it is filled at once, from then on a new session takes the oldest one's
// place. Filling and replacing go through the same lines, so that a profile has one site for both.
type sessionCache struct {
	sessions map[uint64]*session
	bound    int
	next     uint64
}

// session is one kilobyte, a size class of its own.
type session struct {
	user  uint64
	token [1016]byte
}

const sessionBytes = 1024

func newSessionCache(bound int64) *sessionCache {
	count := int(bound / sessionBytes)
	return &sessionCache{sessions: make(map[uint64]*session, count+1), bound: count}
}

// admit adds about `bytes` worth of sessions and what is missing to the bound; it says how much of
// the former it did.
func (c *sessionCache) admit(bytes int64) int64 {
	if c.bound == 0 {
		return bytes
	}
	added := int64(0)
	for len(c.sessions) < c.bound || added+sessionBytes <= bytes {
		if len(c.sessions) >= c.bound {
			delete(c.sessions, c.next-uint64(c.bound))
			added += sessionBytes
		}
		c.sessions[c.next] = &session{user: c.next} // never more of these than the bound
		c.next++
	}
	return added
}

func (c *sessionCache) bytes() int64 { return int64(len(c.sessions)) * sessionBytes }

const requestBytes = 4096

var requests int64

// lastRequest makes each request escape to the heap; the next one lets go of it.
var lastRequest atomic.Pointer[[requestBytes]byte]

func handleRequest() {
	request := new([requestBytes]byte) // garbage a moment later
	requests++
	request[0] = byte(requests)
	lastRequest.Store(request)
}
