// A webhook gateway as a good Go programmer would write it with net/http and nats.go: the peer that gatewayd is
// measured against. It gives the same promise on the way that is measured (202 only after both acknowledgements), with
// the same checks, counters and access log; it has none of gatewayd's repair, dead letters, reloading or draining.
//
// Settings come from the environment: PORT, NATS_URL, SECRETS (separated by commas), LOG (a file), MAX_BODY (bytes),
// ENTRIES (bound of what is remembered), RATE (requests a second). GOMAXPROCS is the caller's.

//go:debug default=go1.23
package main

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	windowS       = 300
	skewS         = 30
	maxBodyAgeS   = 120
	maxSignatures = 5
	ackWait       = 2 * time.Second
	source        = "tradingview"
)

var (
	noncePattern      = regexp.MustCompile(`^[A-Za-z0-9._:-]{8,128}$`)
	keyPattern        = regexp.MustCompile(`^[\x21-\x7e]{1,255}$`)
	instrumentPattern = regexp.MustCompile(`^[A-Z0-9][A-Z0-9._:/!-]{0,63}$`)
)

// signal is the body's schema: pointers tell what is absent from what is empty.
type signal struct {
	Ticker   *string      `json:"ticker"`
	Price    *json.Number `json:"price"`
	Time     *string      `json:"time"`
	Action   *string      `json:"action"`
	Strategy *string      `json:"strategy"`
	Strength *json.Number `json:"strength"`
}

type normalised struct {
	CorrID       string       `json:"corr_id"`
	Source       string       `json:"source"`
	Instrument   string       `json:"instrument"`
	Price        json.Number  `json:"price"`
	Side         *string      `json:"side"`
	Strength     *json.Number `json:"strength"`
	Timestamp    string       `json:"timestamp"`
	NormalizedAt string       `json:"normalized_at"`
	Strategy     *string      `json:"strategy,omitempty"`
	Schema       string       `json:"schema_version"`
}

type raw struct {
	CorrID     string          `json:"corr_id"`
	Source     string          `json:"source"`
	ReceivedAt string          `json:"received_at"`
	Payload    json.RawMessage `json:"payload"`
}

type acceptance struct {
	Status         string `json:"status"`
	CorrID         string `json:"corr_id"`
	IdempotencyKey string `json:"idempotency_key"`
	Timestamp      string `json:"timestamp"`
	Duplicate      bool   `json:"duplicate"`
}

type accessLine struct {
	Timestamp  string  `json:"timestamp"`
	Level      string  `json:"level"`
	Message    string  `json:"message"`
	CorrID     string  `json:"corr_id"`
	Method     string  `json:"method"`
	Path       string  `json:"path"`
	Status     int     `json:"status"`
	LatencyMS  float64 `json:"latency_ms"`
	Source     string  `json:"source"`
	Instrument string  `json:"instrument"`
	ClientIP   string  `json:"client_ip"`
}

type digest [16]byte

func digestOf(kind string, text []byte) (made digest) {
	sum := sha256.New()
	fmt.Fprintf(sum, "%d:%s%d:%s%d:", len(source), source, len(kind), kind, len(text))
	sum.Write(text)
	copy(made[:], sum.Sum(nil))
	return made
}

// flight is one identity: under way until done is closed, then stored or gone.
type flight struct {
	body   digest
	done   chan struct{}
	stored bool
}

// admission remembers nonces and identities in two generations each, so that nothing has to be scanned.
type admission struct {
	mutex              sync.Mutex
	bound              int
	turned             time.Time
	nonces, oldNonces  map[digest]digest
	flights, oldFlight map[digest]*flight
	tokens, rate       float64
	filled             time.Time
}

type verdict int

const (
	fresh verdict = iota
	twin
	limited
	replayed
	conflict
)

func newAdmission(bound int, rate float64) *admission {
	return &admission{
		bound: bound, rate: rate, tokens: rate, filled: time.Now(), turned: time.Now(),
		nonces: map[digest]digest{}, oldNonces: map[digest]digest{},
		flights: map[digest]*flight{}, oldFlight: map[digest]*flight{},
	}
}

func (a *admission) admit(nonce, identity, body digest, now time.Time) (verdict, *flight) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	a.tokens = math.Min(a.rate, a.tokens+now.Sub(a.filled).Seconds()*a.rate)
	a.filled = now
	if a.tokens < 1 {
		return limited, nil
	}
	a.tokens--
	if len(a.nonces)+len(a.flights) >= a.bound/2 || now.Sub(a.turned) > time.Hour {
		a.oldNonces, a.nonces = a.nonces, map[digest]digest{}
		a.oldFlight, a.flights = a.flights, map[digest]*flight{}
		a.turned = now
	}
	if _, used := a.nonces[nonce]; used {
		return replayed, nil
	}
	if _, used := a.oldNonces[nonce]; used {
		return replayed, nil
	}
	known := a.flights[identity]
	if known == nil {
		known = a.oldFlight[identity]
	}
	if known != nil && known.body != body {
		return conflict, nil
	}
	a.nonces[nonce] = identity
	if known != nil {
		return twin, known
	}
	known = &flight{body: body, done: make(chan struct{})}
	a.flights[identity] = known
	return fresh, known
}

func (a *admission) settle(nonce, identity digest, known *flight, stored bool) {
	a.mutex.Lock()
	known.stored = stored
	if !stored {
		delete(a.nonces, nonce)
		delete(a.flights, identity)
		delete(a.oldFlight, identity)
	}
	a.mutex.Unlock()
	close(known.done)
}

// counters are what a scrape shows. A map behind one lock costs less here than the usual library.
var buckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5}

type counters struct {
	mutex    sync.Mutex
	requests map[int]uint64
	events   uint64
	latency  [12]uint64
	sum      float64
}

func (c *counters) count(status int, seconds float64, events uint64) {
	place := 0
	for place < len(buckets) && seconds > buckets[place] {
		place++
	}
	c.mutex.Lock()
	c.requests[status]++
	c.events += events
	c.latency[place]++
	c.sum += seconds
	c.mutex.Unlock()
}

func (c *counters) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for status, count := range c.requests {
		fmt.Fprintf(w, "webhook_requests_total{source=%q,status=\"%d\"} %d\n", source, status, count)
	}
	fmt.Fprintf(w, "events_published_total %d\n", c.events)
	total := uint64(0)
	for place, bound := range buckets {
		total += c.latency[place]
		fmt.Fprintf(w, "webhook_latency_seconds_bucket{le=\"%v\"} %d\n", bound, total)
	}
	total += c.latency[len(buckets)]
	fmt.Fprintf(w, "webhook_latency_seconds_bucket{le=\"+Inf\"} %d\n", total)
	fmt.Fprintf(w, "webhook_latency_seconds_sum %v\nwebhook_latency_seconds_count %d\n", c.sum, total)
}

// accessLog keeps lines for a tenth of a second at most, so that a line costs no system call.
type accessLog struct {
	mutex sync.Mutex
	file  *bufio.Writer
}

func openAccessLog(path string) *accessLog {
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		log.Fatal(err)
	}
	made := &accessLog{file: bufio.NewWriterSize(file, 1<<16)}
	go func() {
		for range time.Tick(100 * time.Millisecond) {
			made.mutex.Lock()
			made.file.Flush()
			made.mutex.Unlock()
		}
	}()
	return made
}

func (l *accessLog) write(line accessLine) {
	text, _ := json.Marshal(line)
	l.mutex.Lock()
	l.file.Write(text)
	l.file.WriteByte('\n')
	l.mutex.Unlock()
}

type gateway struct {
	stream    nats.JetStreamContext
	macs      []sync.Pool
	admission *admission
	counters  *counters
	log       *accessLog
	maxBody   int64
}

type refusal struct {
	status int
	reason string
}

// signed says whether one of the signatures was made with one of the secrets. Every secret is tried.
func (g *gateway) signed(header, timestamp, nonce, key string, body []byte) bool {
	values := strings.Split(header, ",")
	if len(values) > maxSignatures {
		return false
	}
	matched := false
	for _, value := range values {
		scheme, text, _ := strings.Cut(strings.TrimSpace(value), "=")
		given, err := hex.DecodeString(text)
		if err != nil || len(given) != sha256.Size || (scheme != "v1" && scheme != "sha256") {
			return false
		}
		for number := range g.macs {
			mac := g.macs[number].Get().(interface {
				io.Writer
				Reset()
				Sum([]byte) []byte
			})
			mac.Reset()
			if scheme == "v1" {
				head := make([]byte, 0, 256)
				head = append(append(head, timestamp...), '\n')
				head = append(append(head, nonce...), '\n')
				head = append(append(head, key...), '\n')
				mac.Write(head)
			}
			mac.Write(body)
			if hmac.Equal(mac.Sum(nil), given) {
				matched = true
			}
			g.macs[number].Put(mac)
		}
	}
	return matched
}

func read(body []byte) (signal, *refusal) {
	var found signal
	reader := json.NewDecoder(bytes.NewReader(body))
	if err := reader.Decode(&found); err != nil {
		return found, &refusal{http.StatusUnprocessableEntity, err.Error()}
	}
	if _, err := reader.Token(); err != io.EOF {
		return found, &refusal{http.StatusUnprocessableEntity, "more than one JSON value"}
	}
	if found.Ticker == nil || found.Price == nil || found.Time == nil {
		return found, &refusal{http.StatusUnprocessableEntity, "ticker, price and time are required"}
	}
	upper := strings.ToUpper(*found.Ticker)
	found.Ticker = &upper
	if !instrumentPattern.MatchString(upper) {
		return found, &refusal{http.StatusUnprocessableEntity, "ticker"}
	}
	if price, err := found.Price.Float64(); err != nil || price <= 0 || math.IsInf(price, 0) {
		return found, &refusal{http.StatusUnprocessableEntity, "price"}
	}
	if found.Strength != nil {
		if strength, err := found.Strength.Float64(); err != nil || strength < 0 || strength > 1 {
			return found, &refusal{http.StatusUnprocessableEntity, "strength"}
		}
	}
	if found.Action != nil {
		switch *found.Action {
		case "buy", "sell", "close":
		default:
			return found, &refusal{http.StatusUnprocessableEntity, "action"}
		}
	}
	return found, nil
}

// accept is the whole way of one webhook; it returns the answer's parts or a refusal.
func (g *gateway) accept(w http.ResponseWriter, r *http.Request, now time.Time) (acceptance, string, *refusal) {
	var none acceptance
	head := r.Header
	if media, _, _ := strings.Cut(head.Get("Content-Type"), ";"); !strings.EqualFold(media, "application/json") {
		return none, "", &refusal{http.StatusUnsupportedMediaType, "Content-Type"}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, g.maxBody))
	if err != nil {
		return none, "", &refusal{http.StatusRequestEntityTooLarge, "body"}
	}
	timestamp, nonce, key := head.Get("X-Timestamp"), head.Get("X-Nonce"), head.Get("Idempotency-Key")
	if key != "" && !keyPattern.MatchString(key) {
		return none, "", &refusal{http.StatusBadRequest, "Idempotency-Key"}
	}
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil || seconds < now.Unix()-windowS || seconds > now.Unix()+skewS {
		return none, "", &refusal{http.StatusUnauthorized, "X-Timestamp"}
	}
	if !noncePattern.MatchString(nonce) {
		return none, "", &refusal{http.StatusUnauthorized, "X-Nonce"}
	}
	if !g.signed(head.Get("X-Signature"), timestamp, nonce, key, body) {
		return none, "", &refusal{http.StatusUnauthorized, "X-Signature"}
	}
	found, refused := read(body)
	if refused != nil {
		return none, "", refused
	}
	at, err := time.Parse(time.RFC3339, *found.Time)
	if err != nil || now.Sub(at) > maxBodyAgeS*time.Second || at.Sub(now) > skewS*time.Second {
		return none, "", &refusal{http.StatusUnprocessableEntity, "time"}
	}
	bodyDigest := digestOf("body", body)
	identity := bodyDigest
	if key != "" {
		identity = digestOf("key", []byte(key))
	}
	text := hex.EncodeToString(identity[:])
	made := acceptance{"accepted", "req_" + text[:20], text, now.UTC().Format(time.RFC3339Nano), false}
	if key != "" {
		made.IdempotencyKey = key
	}
	used := digestOf("nonce", []byte(nonce))
	said, known := g.admission.admit(used, identity, bodyDigest, now)
	switch said {
	case limited:
		return none, *found.Ticker, &refusal{http.StatusTooManyRequests, "rate"}
	case replayed:
		return none, *found.Ticker, &refusal{http.StatusUnauthorized, "nonce used"}
	case conflict:
		return none, *found.Ticker, &refusal{http.StatusConflict, "Idempotency-Key"}
	case twin:
		<-known.done
		made.Duplicate = true
		if !known.stored {
			return none, *found.Ticker, &refusal{http.StatusServiceUnavailable, "not stored"}
		}
		return made, *found.Ticker, nil
	}
	stored := g.publish(&made, found, at, body, text)
	g.admission.settle(used, identity, known, stored)
	if !stored {
		return none, *found.Ticker, &refusal{http.StatusServiceUnavailable, "not stored"}
	}
	return made, *found.Ticker, nil
}

// publish stores both events and waits for both acknowledgements.
func (g *gateway) publish(made *acceptance, found signal, at time.Time, body []byte, identity string) bool {
	first, err := json.Marshal(raw{made.CorrID, source, made.Timestamp, body})
	if err != nil {
		return false
	}
	second, err := json.Marshal(normalised{
		made.CorrID, source, *found.Ticker, *found.Price, found.side(), found.Strength,
		at.UTC().Format(time.RFC3339Nano), made.Timestamp, found.Strategy, "1.1.0",
	})
	if err != nil {
		return false
	}
	var futures [2]nats.PubAckFuture
	for number, event := range [2]struct {
		subject, part string
		data          []byte
	}{{"signals.raw", ":raw", first}, {"signals.normalized", ":norm", second}} {
		message := &nats.Msg{Subject: event.subject, Data: event.data, Header: nats.Header{
			"Corr-ID": {made.CorrID}, "Source": {source}, "Instrument": {*found.Ticker},
			"Schema-Version": {"1.1.0"}, "Idempotency-Key": {made.IdempotencyKey},
			"Nats-Msg-Id": {"go:" + identity + event.part},
		}}
		if futures[number], err = g.stream.PublishMsgAsync(message); err != nil {
			return false
		}
	}
	patience := time.NewTimer(ackWait)
	defer patience.Stop()
	for _, future := range futures {
		select {
		case ack := <-future.Ok():
			made.Duplicate = made.Duplicate || ack.Duplicate
		case <-future.Err():
			return false
		case <-patience.C:
			return false
		}
	}
	return true
}

func (s signal) side() *string {
	if s.Action == nil || *s.Action == "close" {
		return nil
	}
	return s.Action
}

func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	status, events := http.StatusAccepted, uint64(2)
	made, instrument, refused := g.accept(w, r, now)
	var answer []byte
	if refused != nil {
		status, events = refused.status, 0
		answer, _ = json.Marshal(map[string]string{"status": "error", "reason": refused.reason})
	} else {
		answer, _ = json.Marshal(made)
	}
	head := w.Header()
	head.Set("Content-Type", "application/json")
	head.Set("X-Correlation-ID", made.CorrID)
	head.Set("Content-Length", strconv.Itoa(len(answer)))
	w.WriteHeader(status)
	w.Write(answer)
	took := time.Since(now).Seconds()
	g.counters.count(status, took, events)
	client, _, _ := strings.Cut(r.RemoteAddr, ":")
	g.log.write(accessLine{
		now.UTC().Format(time.RFC3339Nano), "info", "Incoming request", made.CorrID, r.Method, r.URL.Path, status,
		math.Round(took*1e5) / 100, source, instrument, client,
	})
}

func number(name string) int {
	value, err := strconv.Atoi(os.Getenv(name))
	if err != nil {
		log.Fatalf("%s: %v", name, err)
	}
	return value
}

func main() {
	connection, err := nats.Connect(os.Getenv("NATS_URL"), nats.MaxReconnects(-1))
	if err != nil {
		log.Fatal(err)
	}
	stream, err := connection.JetStream(nats.PublishAsyncMaxPending(16384))
	if err != nil {
		log.Fatal(err)
	}
	g := &gateway{
		stream:    stream,
		admission: newAdmission(number("ENTRIES"), float64(number("RATE"))),
		counters:  &counters{requests: map[int]uint64{}},
		log:       openAccessLog(os.Getenv("LOG")),
		maxBody:   int64(number("MAX_BODY")),
	}
	for _, secret := range strings.Split(os.Getenv("SECRETS"), ",") {
		secret := []byte(secret)
		g.macs = append(g.macs, sync.Pool{New: func() any { return hmac.New(sha256.New, secret) }})
	}
	mux := http.NewServeMux()
	mux.Handle("POST /webhook/tradingview", g)
	mux.Handle("GET /metrics", g.counters)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !connection.IsConnected() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	server := &http.Server{
		Addr: "127.0.0.1:" + os.Getenv("PORT"), Handler: mux,
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 75 * time.Second,
	}
	log.Fatal(server.ListenAndServe())
}
