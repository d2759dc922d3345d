package register

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestLatePoll fetches the welcome long after it was said, as a client on a loaded board does.
func TestLatePoll(t *testing.T) {
	b := serve(t, Config{})
	address := openPolling(t, b)
	if status, body := request(t, http.MethodPost, address, "40/init,"); status != http.StatusOK {
		t.Fatalf("connect: %d %s", status, body)
	}
	var hello string
	for !strings.Contains(hello, `["sc1"`) {
		_, body := request(t, http.MethodGet, address, "")
		hello += body
	}
	_, hello, _ = strings.Cut(hello, "42/init,")
	h, err := parseHello("42/init," + hello)
	if err != nil {
		t.Fatal(err)
	}
	request(t, http.MethodPost, address, `42/init,["cs1",`+info("a", h, newKey(t))+`]`)
	late := time.NewTimer(2*Linger + time.Second)
	defer late.Stop()
	<-late.C
	if status, body := request(t, http.MethodGet, address, ""); status != http.StatusOK || !strings.Contains(body, `["sc2",{"id":"a"`) {
		t.Errorf("got %d %s", status, body)
	}
}

// TestAskedAgain answers sc1 the second time only, as a client does whose handler had no namespace yet, and asks not more than twice.
func TestAskedAgain(t *testing.T) {
	for _, revision := range []int{3, 4} {
		t.Run(fmt.Sprintf("revision %d", revision), func(t *testing.T) {
			b := serve(t, Config{Timeout: 3 * time.Second})
			r := dial(t, b, revision)
			first := r.joined()
			again, err := parseHello(r.want(`42/init,["sc1",`))
			if err != nil || again != first {
				t.Fatalf("got %+v, %v, want %+v again", again, err, first)
			}
			r.send(`42/init,["cs1",` + info("a", again, newKey(t)) + `]`)
			r.want(`42/init,["sc2",{"id":"a"`)

			r = dial(t, b, revision)
			r.joined()
			r.want(`42/init,["sc1",`)
			if next := r.want("42/init,"); !strings.Contains(next, `"timeout"`) {
				t.Errorf("got %s, want the end of the time", next)
			}
		})
	}
}
