// Command traffic is both ends of the data plane's benchmark: engines that answer at once, and clients that measure.
package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) < 2 {
		fail(fmt.Errorf("usage: traffic engines|open|streams [options]"))
	}
	commands := map[string]func([]string) error{"engines": runEngines, "open": runOpen, "streams": runStreams}
	command, known := commands[os.Args[1]]
	if !known {
		fail(fmt.Errorf("no command %q: engines, open or streams", os.Args[1]))
	}
	if err := command(os.Args[2:]); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "traffic:", err)
	os.Exit(2)
}
