package main

import (
	"flag"
	"sync"
	"time"
)

// runStreams keeps a number of streams open, one after the other on each connection, and measures their chunks.
func runStreams(words []string) error {
	flags := flag.NewFlagSet("streams", flag.ExitOnError)
	target := flags.String("target", "127.0.0.1:8080", "host:port")
	path := flags.String("prompts", "", "file of bodies, one a line")
	connections := flags.Int("connections", 32, "streams at a time")
	seconds := flags.Float64("seconds", 5, "no stream begins later")
	if err := flags.Parse(words); err != nil {
		return err
	}
	prompts, err := readPrompts(*path)
	if err != nil {
		return err
	}
	began := time.Now()
	deadline := began.Add(time.Duration(*seconds * float64(time.Second)))
	var group sync.WaitGroup
	var lock sync.Mutex
	all, outcomes := reading{}, map[string]int{}
	for index := range *connections {
		group.Add(1)
		go func() {
			defer group.Done()
			// Streams begin spread over a fifth of a second: in step they would come in bursts.
			time.Sleep(time.Duration(index) * 200 * time.Millisecond / time.Duration(*connections))
			one := &client{target: *target}
			defer one.close()
			mine := reading{}
			for number := index; time.Now().Before(deadline); number += *connections {
				request := prompts[number%len(prompts)].numbered(one.buffer, number)
				status, err := one.stream(request, 0, 0, &mine)
				lock.Lock()
				outcomes[outcome("stream", status, err)]++
				lock.Unlock()
			}
			lock.Lock()
			defer lock.Unlock()
			all.delays = append(all.delays, mine.delays...)
			all.gaps = append(all.gaps, mine.gaps...)
			all.first = append(all.first, mine.first...)
		}()
	}
	group.Wait()
	took := time.Since(began).Seconds()
	return printJSON(map[string]any{
		"seconds": took, "chunks": len(all.delays), "chunks_per_s": float64(len(all.delays)) / took, "outcomes": outcomes,
		"delay_ms": quantiles(all.delays), "gap_ms": quantiles(all.gaps), "first_ms": quantiles(all.first),
	})
}
