package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The kinds of requests, in the order of `--mix`.
var kinds = []string{"plain", "stream", "slow", "cancel", "reset", "half"}

// A job is a request and the instant at which it is due, whether or not the one before has been answered.
type job struct {
	number int
	kind   string
	due    time.Time
}

// An openLoop sends requests at their instants, each on a connection that is free, or on a new one.
type openLoop struct {
	target  string
	prompts []prompt
	streams []prompt
	most    int

	lock      sync.Mutex
	idle      []chan job
	waiting   []job
	workers   int
	latencies []int64
	lags      []int64
	outcomes  map[string]int
	group     sync.WaitGroup
}

func runOpen(words []string) error {
	flags := flag.NewFlagSet("open", flag.ExitOnError)
	target := flags.String("target", "127.0.0.1:8080", "host:port")
	path := flags.String("prompts", "", "file of bodies, one a line")
	streamsPath := flags.String("stream-prompts", "", "file of bodies that ask for streams")
	rate := flags.Float64("rate", 500, "requests a second, at the instants of a Poisson process")
	seconds := flags.Float64("seconds", 5, "for how long requests begin")
	seed := flags.Int64("seed", 1, "of instants and kinds")
	most := flags.Int("connections", 2048, "most connections")
	mix := flags.String("mix", "1", "shares of "+strings.Join(kinds, ",")+"; what is not given is 0")
	if err := flags.Parse(words); err != nil {
		return err
	}
	shares, err := parseMix(*mix)
	if err != nil {
		return err
	}
	loop := &openLoop{target: *target, most: *most, outcomes: map[string]int{}}
	if loop.prompts, err = readPrompts(*path); err != nil {
		return err
	}
	loop.streams = loop.prompts
	if *streamsPath != "" {
		if loop.streams, err = readPrompts(*streamsPath); err != nil {
			return err
		}
	}
	began := time.Now()
	offered := loop.run(began, *rate, *seconds, shares, rand.New(rand.NewSource(*seed)))
	took := time.Since(began).Seconds()
	return printJSON(map[string]any{
		"offered": offered, "seconds": took, "rate": *rate, "connections": loop.workers, "outcomes": loop.outcomes,
		"latency_ms": quantiles(loop.latencies), "send_lag_ms": quantiles(loop.lags),
	})
}

func parseMix(text string) ([]float64, error) {
	words := strings.Split(text, ",")
	if len(words) > len(kinds) {
		return nil, fmt.Errorf("--mix: %d shares, there are %d kinds", len(words), len(kinds))
	}
	shares := make([]float64, len(words))
	for index, word := range words {
		share, err := strconv.ParseFloat(word, 64)
		if err != nil || share < 0 || share > 1 {
			return nil, fmt.Errorf("--mix: %q is no share", word)
		}
		shares[index] = share
	}
	return shares, nil
}

func (loop *openLoop) run(began time.Time, rate, seconds float64, shares []float64, random *rand.Rand) int {
	runtime.LockOSThread() // sleeps of its own, which are more exact than those of the runtime's timers
	number := 0
	for at := random.ExpFloat64() / rate; at < seconds; at += random.ExpFloat64() / rate {
		due := began.Add(time.Duration(at * float64(time.Second)))
		sleepUntil(due)
		loop.begin(job{number, drawn(shares, random), due})
		number++
	}
	runtime.UnlockOSThread()
	loop.group.Wait()
	for _, one := range loop.idle {
		close(one)
	}
	return number
}

func sleepUntil(due time.Time) {
	for {
		left := time.Until(due)
		if left <= 0 {
			return
		}
		wait := syscall.NsecToTimespec(left.Nanoseconds())
		_ = syscall.Nanosleep(&wait, nil) // cut short by a signal, it is asked for again
	}
}

func drawn(shares []float64, random *rand.Rand) string {
	left := random.Float64()
	for index, share := range shares {
		if left < share {
			return kinds[index]
		}
		left -= share
	}
	return kinds[0]
}

func (loop *openLoop) begin(one job) {
	loop.group.Add(1)
	loop.lock.Lock()
	defer loop.lock.Unlock()
	if last := len(loop.idle) - 1; last >= 0 {
		worker := loop.idle[last]
		loop.idle = loop.idle[:last]
		worker <- one
		return
	}
	if loop.workers >= loop.most { // it waits for a connection; its latency counts from when it was due
		loop.waiting = append(loop.waiting, one)
		return
	}
	loop.workers++
	worker := make(chan job, 1)
	worker <- one
	go loop.work(worker)
}

func (loop *openLoop) work(jobs chan job) {
	one := &client{target: loop.target}
	defer one.close()
	for next := range jobs {
		began := time.Now()
		said := loop.do(one, next)
		loop.settle(next, said, began, time.Now(), jobs)
		loop.group.Done()
	}
}

func (loop *openLoop) settle(done job, said string, began, ended time.Time, jobs chan job) {
	loop.lock.Lock()
	defer loop.lock.Unlock()
	loop.outcomes[said]++
	loop.lags = append(loop.lags, began.Sub(done.due).Nanoseconds())
	if said == "plain 200" {
		loop.latencies = append(loop.latencies, ended.Sub(done.due).Nanoseconds())
	}
	if len(loop.waiting) > 0 {
		jobs <- loop.waiting[0]
		loop.waiting = loop.waiting[1:]
		return
	}
	loop.idle = append(loop.idle, jobs)
}

// do makes one request of its kind and names what came of it.
func (loop *openLoop) do(one *client, next job) string {
	source := loop.prompts
	if next.kind != "plain" {
		source = loop.streams
	}
	one.buffer = source[next.number%len(source)].numbered(one.buffer, next.number)
	seen := 1 + next.number%40
	switch next.kind {
	case "stream":
		status, err := one.stream(one.buffer, 0, 0, nil)
		return outcome("stream", status, err)
	case "slow":
		return slowly(loop.target, one.buffer)
	case "cancel":
		status, err := one.stream(one.buffer, seen, 0, nil)
		one.close()
		return outcome("cancel", status, err)
	case "reset":
		status, err := one.stream(one.buffer, seen, 0, nil)
		one.reset()
		return outcome("reset", status, err)
	case "half":
		return half(loop.target, one.buffer)
	default:
		status, err := one.whole(one.buffer)
		return outcome("plain", status, err)
	}
}

// slowly reads a stream through a small window, a little at a time, on a connection of its own.
func slowly(target string, request []byte) string {
	one := &client{target: target}
	defer one.close()
	if err := one.dial(); err != nil {
		return outcome("slow", "", err)
	}
	if err := one.connection.SetReadBuffer(slowBuffer); err != nil {
		return outcome("slow", "", err)
	}
	status, err := one.stream(request, 0, slowReads, nil)
	return outcome("slow", status, err)
}

// half sends half a body and leaves, on a connection of its own.
func half(target string, request []byte) string {
	one := &client{target: target}
	if err := one.dial(); err != nil {
		return outcome("half", "", err)
	}
	_, err := one.connection.Write(request[:len(request)/2])
	time.Sleep(20 * time.Millisecond) // long enough for the picker to have been asked
	one.reset()
	return outcome("half", "left", err)
}

// outcome names what came of a request: its kind and its status, or what went wrong.
func outcome(kind, status string, err error) string {
	switch {
	case err == nil:
		return kind + " " + status
	case errors.Is(err, os.ErrDeadlineExceeded):
		return kind + " timed out"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return kind + " cut off"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return kind + " reset"
	case errors.Is(err, syscall.ECONNREFUSED):
		return kind + " refused"
	default:
		for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(err) {
			err = inner // without the addresses, which are other ones every time
		}
		return kind + " " + err.Error()
	}
}
