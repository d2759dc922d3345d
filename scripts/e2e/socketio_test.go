package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"testing"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"skerry.internal/messages"
)

// A Socket.IO client that nobody here wrote registers with the built manager, by both transports, and what it is given opens an MQTT session:
// the programs' own clients could share a mistake with their server.
func TestOutsideClientRegisters(t *testing.T) {
	const python, script = "/usr/bin/python3", "../../cluster-manager/internal/register/testdata/clients/client.py"
	if out, err := exec.CommandContext(t.Context(), python, "-c", "import socketio, requests, websocket").CombinedOutput(); err != nil {
		if os.Getenv("SKERRY_TEST_ALL") != "" {
			t.Fatalf("python-socketio is missing (make deps installs it): %v\n%s", err, out)
		}
		t.Skipf("python-socketio is missing: %v", err)
	}
	l := newLab(t)
	for _, transport := range []string{"polling", "websocket"} {
		name := messages.NodeID(l.prefix + transport)
		arg, err := json.Marshal(map[string]any{"url": "http://" + l.http, "transports": []string{transport}, "count": 1,
			"info": messages.NodeInfo{Name: name, Key: "key of " + string(name), Protocol: messages.Protocol, Arch: "amd64"}})
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), python, script, string(arg)).Output()
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			Event, Error string
			Answer       messages.Welcome
		}
		if err := json.Unmarshal(out, &got); err != nil || got.Event != messages.WelcomeEvent || got.Answer.ID != name {
			t.Fatalf("by %s: got %s, %v", transport, out, err)
		}
		c := dial(l, "node-"+string(name), func(o *mqtt.ClientOptions) { o.SetUsername(got.Answer.Username).SetPassword(got.Answer.Password) })
		c.Publish("nodes/"+string(name)+"/presence", 1, true, messages.Encode(messages.Presence{Online: true, Digest: messages.Digest(nil)})).Wait()
		l.eventually(string(name)+" is online", func() bool { s, _ := l.nodeStatus(name); return s.State == messages.NodeOnline })
		c.Disconnect(0)
	}
}
