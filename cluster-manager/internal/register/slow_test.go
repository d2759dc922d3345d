package register

import (
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
