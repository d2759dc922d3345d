// Command app is the workload of the tests: a web server that does what its environment says.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

func number(name string) int {
	n, _ := strconv.Atoi(os.Getenv(name))
	return n
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == "exit" { // what a health check runs
		code, _ := strconv.Atoi(os.Args[2])
		os.Exit(code)
	}
	if n := number("EAT_MB"); n > 0 {
		eat(n)
	}
	if ms := number("EXIT_AFTER_MS"); ms > 0 {
		time.AfterFunc(time.Duration(ms)*time.Millisecond, func() { os.Exit(number("EXIT_CODE")) })
	}
	http.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "%s %s %s\n", os.Getenv("SKERRY_INSTANCE"), os.Getenv("SKERRY_NODE"), os.Getenv("MODE"))
	})
	var sick atomic.Bool
	sick.Store(os.Getenv("SICK") != "")
	http.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if sick.Load() {
			http.Error(w, "sick", http.StatusServiceUnavailable)
		}
	})
	http.HandleFunc("GET /sick", func(_ http.ResponseWriter, r *http.Request) { sick.Store(r.URL.Query().Get("is") != "") })
	http.HandleFunc("GET /get", get)
	http.HandleFunc("GET /read", func(w http.ResponseWriter, r *http.Request) { // what the container sees at a path
		f, err := os.Open(r.URL.Query().Get("path"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		defer f.Close()
		_, _ = io.CopyN(w, f, 4096)
	})
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	server := &http.Server{Addr: ":8080", ReadHeaderTimeout: time.Second}
	go func() { _ = server.ListenAndServe() }()
	fmt.Println("serving")
	<-ctx.Done()
	// Like a server behind a list of copies that lags: it goes on serving for a moment.
	time.Sleep(time.Duration(number("LINGER_MS")) * time.Millisecond)
	shut, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = server.Shutdown(shut)
}

// get fetches a URL as the container sees it, as often as asked, and says how often it failed, who answered, and how many microseconds each took.
// With keep all go over one connection that is open, else each over one of its own, for which the name is looked up again.
func get(w http.ResponseWriter, r *http.Request) {
	keep := r.URL.Query().Get("keep") != ""
	one := &net.Dialer{FallbackDelay: -1} // else a slow connection has a second flow beside it, of the other family, which takes a turn of its own
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: !keep, DialContext: one.DialContext}}
	defer client.CloseIdleConnections()
	if keep {
		_, _ = fetch(r.Context(), client, r.URL.Query().Get("url"))
	}
	times, _ := strconv.Atoi(r.URL.Query().Get("times"))
	seen, failed, took := map[string]int{}, 0, []int64{}
	for range max(times, 1) {
		begun := time.Now()
		body, err := fetch(r.Context(), client, r.URL.Query().Get("url"))
		if err != nil {
			failed++
			fmt.Println(err)
			body = err.Error()
		}
		seen[body]++
		took = append(took, time.Since(begun).Microseconds())
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"failed": failed, "seen": seen, "took_us": took})
}

func fetch(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, resp.Status)
	}
	return strings.TrimSpace(string(body)), err
}

// eat takes memory until it has n MiB, one at a time, and touches all of it.
func eat(n int) {
	var held [][]byte
	for range n {
		b := make([]byte, 1<<20)
		for i := range b {
			b[i] = byte(i)
		}
		held = append(held, b)
	}
	fmt.Println("ate", len(held))
}
