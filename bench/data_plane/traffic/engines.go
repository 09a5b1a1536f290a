package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	lookAtBytes = 256 // of a body: what says how to answer comes first in the bodies of this benchmark
	stampDigits = 19
	kvRequests  = 256 // so many requests at once fill the KV cache, as /metrics tells it
)

// An engine answers on one address: completions at once, streams chunk by chunk.
type engine struct {
	requests, streams, aborted, scrapes, others atomic.Int64
	running                                     atomic.Int64
}

type engines struct {
	all []*engine
	gap time.Duration
}

func runEngines(words []string) error {
	flags := flag.NewFlagSet("engines", flag.ExitOnError)
	host := flags.String("host", "127.0.0.1", "address to listen on")
	port := flags.Int("port", 21000, "first port")
	count := flags.Int("count", 8, "engines, on consecutive ports")
	gapMs := flags.Float64("gap-ms", 10, "from one chunk of a stream to the next")
	if err := flags.Parse(words); err != nil {
		return err
	}
	fleet := &engines{gap: time.Duration(*gapMs * float64(time.Millisecond))}
	failed := make(chan error)
	for index := range *count {
		listener, err := net.Listen("tcp", net.JoinHostPort(*host, strconv.Itoa(*port+index)))
		if err != nil {
			return err
		}
		one := &engine{}
		fleet.all = append(fleet.all, one)
		go func() { failed <- fleet.accept(listener, one) }()
	}
	fmt.Println("ready")
	return <-failed
}

func (fleet *engines) accept(listener net.Listener, one *engine) error {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go fleet.serve(connection, one)
	}
}

// serve answers the requests of one connection until it ends or cannot be read.
func (fleet *engines) serve(connection net.Conn, one *engine) {
	defer connection.Close()
	reader := bufio.NewReaderSize(connection, 16*1024)
	for {
		request, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		head, err := readHead(request.Body)
		if err != nil {
			return
		}
		if err := fleet.answer(connection, one, request, head); err != nil {
			if !errors.Is(err, errUnread) {
				one.aborted.Add(1)
			}
			return
		}
	}
}

var errUnread = errors.New("the connection is not kept")

// readHead reads a body to its end and returns its first bytes.
func readHead(body io.Reader) ([]byte, error) {
	head := make([]byte, lookAtBytes)
	read, err := io.ReadFull(body, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, err
	}
	_, err = io.Copy(io.Discard, body)
	return head[:read], err
}

func (fleet *engines) answer(to io.Writer, one *engine, request *http.Request, head []byte) error {
	if request.Method == http.MethodPost && strings.HasSuffix(request.URL.Path, "/completions") {
		one.requests.Add(1)
		one.running.Add(1)
		defer one.running.Add(-1)
		if bytes.Contains(head, []byte(`"stream":true`)) {
			one.streams.Add(1)
			return fleet.stream(to, tokensOf(head))
		}
		_, err := to.Write(wholeAnswer)
		return err
	}
	if request.Method == http.MethodPost {
		one.others.Add(1)
	}
	_, err := to.Write(fleet.other(one, request.URL.Path))
	return err
}

// other answers what is no generation: health, models, metrics, what every engine has counted.
func (fleet *engines) other(one *engine, path string) []byte {
	switch path {
	case "/metrics":
		one.scrapes.Add(1)
		return response("text/plain; version=0.0.4; charset=utf-8", one.metrics())
	case "/counts":
		return response("application/json", fleet.counts())
	case "/v1/models":
		return response("application/json", []byte(`{"object":"list","data":[{"id":"llama","object":"model"}]}`))
	case "/v1/chat/completions/render": // what a prompt's tokens are: not every engine says it
		return []byte("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
	default: // health in all its names, and what proxies ask an engine about itself
		return response("application/json", []byte(`{"model_path":"llama","served_model_name":"llama","is_generation":true}`))
	}
}

func (one *engine) metrics() []byte {
	var text bytes.Buffer
	running := one.running.Load()
	labels := `{engine="0",model_name="llama"}`
	fmt.Fprintf(&text, "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running%s %d\n", labels, running)
	fmt.Fprintf(&text, "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting%s 0\n", labels)
	usage := min(1, float64(running)/kvRequests)
	fmt.Fprintf(&text, "# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc%s %g\n", labels, usage)
	text.WriteString("# TYPE vllm:cache_config_info gauge\n")
	text.WriteString(`vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="8192"} 1` + "\n")
	return text.Bytes()
}

func (fleet *engines) counts() []byte {
	type count struct {
		Requests int64 `json:"requests"`
		Streams  int64 `json:"streams"`
		Aborted  int64 `json:"aborted"`
		Running  int64 `json:"running"`
		Scrapes  int64 `json:"scrapes"`
		Others   int64 `json:"others"`
	}
	found := make([]count, len(fleet.all))
	for index, one := range fleet.all {
		found[index] = count{
			one.requests.Load(), one.streams.Load(), one.aborted.Load(), one.running.Load(), one.scrapes.Load(),
			one.others.Load(),
		}
	}
	text, _ := json.Marshal(found) // numbers alone: it cannot fail
	return text
}

func response(kind string, body []byte) []byte {
	head := fmt.Sprintf("HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n", kind, len(body))
	return append([]byte(head), body...)
}

var wholeAnswer = response("application/json", []byte(`{"id":"chatcmpl-1","object":"chat.completion","created":1,`+
	`"model":"llama","choices":[{"index":0,"message":{"role":"assistant","content":"`+
	string(bytes.Repeat([]byte("an answer "), 40))+`"},"finish_reason":"stop"}],`+
	`"usage":{"prompt_tokens":200,"completion_tokens":80,"total_tokens":280}}`))

const (
	streamHead = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
	chunkStart = `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"llama",` +
		`"choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}],"stamp":`
	chunkEnd = "}\n\n"
)

func httpChunk(data string) []byte { return fmt.Appendf(nil, "%x\r\n%s\r\n", len(data), data) }

// stream sends one chunk for each token, each with the nanosecond at which it was sent, a gap apart.
func (fleet *engines) stream(to io.Writer, tokens int) error {
	if _, err := io.WriteString(to, streamHead); err != nil {
		return err
	}
	chunk := httpChunk(chunkStart + string(bytes.Repeat([]byte("0"), stampDigits)) + chunkEnd)
	at := bytes.Index(chunk, []byte(`"stamp":`)) + len(`"stamp":`)
	due := time.Now()
	for range tokens {
		stamp := time.Now()
		strconv.AppendInt(chunk[at:at], stamp.UnixNano(), 10)
		if _, err := to.Write(chunk); err != nil {
			return err
		}
		due = due.Add(fleet.gap)
		if wait := time.Until(due); wait > 0 {
			time.Sleep(wait)
		}
	}
	usage := fmt.Sprintf(`data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"llama","choices":[],`+
		`"usage":{"prompt_tokens":200,"completion_tokens":%d,"total_tokens":%d}}`+"\n\n", tokens, 200+tokens)
	_, err := to.Write(append(append(httpChunk(usage), httpChunk("data: [DONE]\n\n")...), "0\r\n\r\n"...))
	return err
}

// tokensOf reads max_tokens, which is how long the answer is; 200 where it is not said.
func tokensOf(head []byte) int {
	_, after, found := bytes.Cut(head, []byte(`"max_tokens":`))
	if !found {
		return 200
	}
	length := 0
	for length < len(after) && after[length] >= '0' && after[length] <= '9' {
		length++
	}
	tokens, err := strconv.Atoi(string(after[:length]))
	if err != nil {
		return 200
	}
	return tokens
}
