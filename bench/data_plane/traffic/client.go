package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"
)

const (
	placeholder   = "############" // in every body: a number goes here, so that no two prompts are the same
	answerTimeout = 60 * time.Second
	slowReads     = 50 * time.Millisecond
	slowBuffer    = 4 * 1024
)

// A prompt is a request as it goes over the wire, but for its number.
type prompt struct {
	bytes []byte
	at    int
}

// readPrompts reads one JSON body a line.
func readPrompts(path string) ([]prompt, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var found []prompt
	for line := range bytes.Lines(text) {
		body := bytes.TrimSpace(line)
		head := fmt.Appendf(nil, "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"+
			"content-length: %d\r\n\r\n", len(body))
		whole := append(head, body...)
		at := bytes.Index(whole, []byte(placeholder))
		if at < 0 {
			return nil, fmt.Errorf("%s: a line without %s", path, placeholder)
		}
		found = append(found, prompt{whole, at})
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s: no prompts", path)
	}
	return found, nil
}

// numbered is the request with a number in its place, in the buffer given.
func (one prompt) numbered(buffer []byte, number int) []byte {
	buffer = append(buffer[:0], one.bytes...)
	copy(buffer[one.at:], fmt.Sprintf("%012d", number))
	return buffer
}

// A client is one connection, dialled when it is needed.
type client struct {
	target     string
	connection *net.TCPConn
	reader     *bufio.Reader
	buffer     []byte
}

func (one *client) dial() error {
	if one.connection != nil {
		return nil
	}
	connection, err := net.DialTimeout("tcp", one.target, 10*time.Second)
	if err != nil {
		return err
	}
	one.connection = connection.(*net.TCPConn)
	one.reader = bufio.NewReaderSize(connection, 8*1024)
	return nil
}

func (one *client) close() {
	if one.connection != nil {
		one.connection.Close()
		one.connection = nil
	}
}

// reset ends the connection without a farewell: the peer sees a RST.
func (one *client) reset() {
	if one.connection != nil {
		_ = one.connection.SetLinger(0) // best effort: a connection that is gone needs no reset
		one.close()
	}
}

// send writes a request and returns the head of its answer.
func (one *client) send(request []byte) (*http.Response, error) {
	if err := one.dial(); err != nil {
		return nil, err
	}
	if err := one.connection.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		return nil, err
	}
	if _, err := one.connection.Write(request); err != nil {
		return nil, err
	}
	return http.ReadResponse(one.reader, nil)
}

// whole sends a request and reads its answer to the end; the connection is kept where the server keeps it.
func (one *client) whole(request []byte) (string, error) {
	answer, err := one.send(request)
	if err != nil {
		one.close()
		return "", err
	}
	if _, err = io.Copy(io.Discard, answer.Body); err != nil || answer.Close {
		one.close()
	}
	return strconv.Itoa(answer.StatusCode), err
}

// A reading is what was seen of the chunks of streams: how late each came, and how long after the one before, in ns.
type reading struct {
	delays, gaps []int64
	first        []int64
}

// stream reads a streamed answer to its end, or until `most` chunks have come (0: all of them), pausing after each read.
func (one *client) stream(request []byte, most int, pause time.Duration, into *reading) (string, error) {
	began := time.Now()
	answer, err := one.send(request)
	if err != nil {
		one.close()
		return "", err
	}
	status := strconv.Itoa(answer.StatusCode)
	chunks, err := readChunks(answer.Body, most, pause, func(at time.Time, delay, gap int64, isFirst bool) {
		if into == nil {
			return
		}
		into.delays = append(into.delays, delay)
		if isFirst {
			into.first = append(into.first, at.Sub(began).Nanoseconds())
		} else {
			into.gaps = append(into.gaps, gap)
		}
	})
	if err != nil || answer.Close {
		one.close()
	}
	if err == nil && most == 0 && answer.StatusCode == http.StatusOK && chunks == 0 {
		return status, fmt.Errorf("a stream without chunks")
	}
	return status, err
}

func readChunks(
	body io.Reader, most int, pause time.Duration, seen func(at time.Time, delay, gap int64, isFirst bool),
) (int, error) {
	stamp := []byte(`"stamp":`)
	buffer, kept, chunks := make([]byte, 64*1024), 0, 0
	var last time.Time
	for {
		read, err := body.Read(buffer[kept:])
		now := time.Now()
		data := buffer[:kept+read]
		for {
			_, after, found := bytes.Cut(data, stamp)
			if !found || len(after) < stampDigits {
				break
			}
			sent, bad := strconv.ParseInt(string(after[:stampDigits]), 10, 64)
			if bad != nil {
				return chunks, bad
			}
			seen(now, now.UnixNano()-sent, now.Sub(last).Nanoseconds(), chunks == 0)
			last, data = now, after[stampDigits:]
			chunks++
		}
		kept = copy(buffer, data[max(0, len(data)-len(stamp)-stampDigits):])
		switch {
		case err == io.EOF:
			return chunks, nil
		case err != nil:
			return chunks, err
		case most > 0 && chunks >= most:
			return chunks, nil
		}
		if pause > 0 {
			time.Sleep(pause)
		}
	}
}
