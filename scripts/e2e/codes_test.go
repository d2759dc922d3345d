package e2e

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"skerry.internal/messages"
)

// gallery is a registry of images on loopback that can be slow.
type gallery struct {
	l       *lab
	host    string
	slow    atomic.Bool
	serving atomic.Int32 // blobs that are being sent slowly
}

func newGallery(l *lab) *gallery {
	l.t.Helper()
	g := &gallery{l: l}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if g.slow.Load() && r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			g.serving.Add(1)
			defer g.serving.Add(-1)
			w = &trickle{w, r}
		}
		inner.ServeHTTP(w, r)
	}))
	l.t.Cleanup(server.Close)
	g.host = strings.TrimPrefix(server.URL, "http://")
	return g
}

// trickle sends about 400 KiB a second.
type trickle struct {
	http.ResponseWriter
	r *http.Request
}

func (t *trickle) Write(b []byte) (int, error) {
	for done := 0; done < len(b); {
		n, err := t.ResponseWriter.Write(b[done:min(done+8<<10, len(b))])
		done += n
		if err != nil {
			return done, err
		}
		select {
		case <-t.r.Context().Done():
			return done, t.r.Context().Err()
		case <-time.After(20 * time.Millisecond): // what is tested is a slow registry
		}
	}
	return len(b), nil
}

// push makes an image of this size, which holds nothing that could run, and returns its name.
func (g *gallery) push(repo, arch string, size int64) string {
	g.l.t.Helper()
	img, err := random.Image(size, 1)
	if err != nil {
		g.l.t.Fatal(err)
	}
	return g.write(repo, img, arch, "", nil)
}

// pushProgram makes an image of one static program and returns its name.
func (g *gallery) pushProgram(repo, path, arch, variant string) string {
	g.l.t.Helper()
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		tar := exec.Command("tar", "-C", filepath.Dir(path), "-c", filepath.Base(path))
		content, err := tar.Output()
		return io.NopCloser(bytes.NewReader(content)), err
	})
	if err != nil {
		g.l.t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		g.l.t.Fatal(err)
	}
	return g.write(repo, img, arch, variant, []string{"/" + filepath.Base(path)})
}

// write puts an image for this processor into the gallery.
func (g *gallery) write(repo string, img v1.Image, arch, variant string, entrypoint []string) string {
	g.l.t.Helper()
	ref := g.host + "/" + repo + ":1"
	tag, err := name.ParseReference(ref)
	if err != nil {
		g.l.t.Fatal(err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		g.l.t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Variant, file.Config.Entrypoint = "linux", arch, variant, entrypoint
	if img, err = mutate.ConfigFile(img, file); err != nil {
		g.l.t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		g.l.t.Fatal(err)
	}
	g.l.t.Cleanup(func() { _ = exec.Command("docker", "rmi", "-f", ref).Run() })
	return ref
}

// needing is a job that needs an image of the gallery.
func (g *gallery) needing(name messages.JobName, image string) messages.Job {
	j := app(name, 1, nil)
	j.Image, j.Health = image, nil
	j.Restart.Backoff = messages.Duration(100 * time.Millisecond)
	return j
}

// answer is what a client hears of a command that is not to succeed.
type answer struct {
	messages.Result
	phase messages.Phase
	words []string // of the message: what a person needs
}

// provoker knows how each code comes about.
type provoker struct {
	*lab
	*gallery
	a, b messages.NodeID
}

// refused expects a command to be refused.
func (p *provoker) refused(cmd messages.Command, words ...string) answer {
	p.t.Helper()
	return answer{p.first(p.send(cmd)), messages.Refused, words}
}

// failed expects a deploy that is accepted to fail, and removes the job.
func (p *provoker) failed(j messages.Job, words ...string) answer {
	p.t.Helper()
	request := p.send(deployCommand(j))
	if r := p.first(request); r.Phase != messages.Accepted {
		p.t.Errorf("%s: got %s %s %q first, want accepted", j.Name, r.Phase, r.Code, r.Message)
	}
	r := p.last(request)
	p.do(messages.Command{Command: messages.Delete, Job: messages.Job{Name: j.Name}})
	return answer{r, messages.Failed, words}
}

// anything is a job that could run.
func anything(change func(*messages.Job)) messages.Job {
	j := app("bad", 1, nil)
	j.Restart.Backoff = messages.Duration(100 * time.Millisecond)
	change(&j)
	return j
}

// provocations holds for every code how it comes about on real parts.
var provocations = map[messages.Code]func(*provoker) answer{
	messages.BadPayload: func(p *provoker) answer {
		return p.refused(messages.Command{Command: messages.Deploy, Job: messages.Job{Name: "Not_A_Name", Spec: messages.Spec{Image: "x"}}}, "job.name", "Not_A_Name")
	},
	messages.UnknownJob: func(p *provoker) answer {
		return p.refused(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "nobody"}}, "nobody")
	},
	messages.UnknownNode: func(p *provoker) answer {
		return p.refused(deployCommand(anything(func(*messages.Job) {}), "ghost"), "ghost")
	},
	messages.UnknownGuest: func(p *provoker) answer {
		id := p.prefix + "guest"
		p.client.Publish("control/guest/remove", 1, false, messages.Encode(messages.GuestCommand{Command: messages.Remove, Guest: "ghost", RequestID: id}))
		return answer{p.first(id), messages.Refused, []string{"ghost"}}
	},
	messages.WrongCluster: func(p *provoker) answer {
		return p.refused(messages.Command{Command: messages.Deploy, Job: anything(func(*messages.Job) {}), Cluster: []string{"other"}}, "lab", "other")
	},
	messages.NoCapacity: func(p *provoker) answer {
		return p.passed(anything(func(j *messages.Job) { j.Resources.CPUs = 4000 }), "cpus free", "4000")
	},
	messages.NoTechnology: func(p *provoker) answer {
		return p.passed(anything(func(j *messages.Job) { j.Technology = "unikernel" }), "unikernel")
	},
	messages.NoNodeMatches: func(p *provoker) answer {
		return p.passed(anything(func(j *messages.Job) { j.Constraints.Labels = map[string]string{"site": "roof"} }), "no label site")
	},
	messages.NotAllowed: func(p *provoker) answer { return p.asViewer() },
	messages.ImageNotFound: func(p *provoker) answer {
		return p.failed(p.needing("bad", p.host+"/none:1"), p.host+"/none:1", "check")
	},
	messages.ImageWrongArch: func(p *provoker) answer {
		return p.failed(p.needing("bad", p.push("other", "arm64", 100)), "/other:1", "arm64", "linux/amd64")
	},
	messages.PortInUse: func(p *provoker) answer {
		taken, err := net.Listen("tcp", "0.0.0.0:0")
		if err != nil {
			p.t.Fatal(err)
		}
		defer taken.Close()
		port := taken.Addr().(*net.TCPAddr).Port
		return p.failed(anything(func(j *messages.Job) { j.Ports = []messages.Port{{Host: port, Container: 8080}} }), fmt.Sprint(port))
	},
	messages.Unhealthy: func(p *provoker) answer {
		return p.failed(anything(func(j *messages.Job) {
			j.Environment = map[string]string{"SICK": "1"}
			j.Health.StartPeriod = messages.Duration(time.Second)
		}), "503")
	},
	messages.Exited: func(p *provoker) answer {
		return p.failed(anything(func(j *messages.Job) {
			j.Environment = map[string]string{"SICK": "until it ends", "EXIT_AFTER_MS": "1", "EXIT_CODE": "9"}
			j.Restart.Policy = messages.RestartNever
		}), "code 9")
	},
	messages.DriverFailed: func(p *provoker) answer {
		return p.failed(anything(func(j *messages.Job) { j.Volumes = []messages.Volume{{Source: "/no/such/folder", Target: "/x"}} }), "/no/such/folder")
	},
	messages.Timeout: func(p *provoker) answer {
		p.slow.Store(true)
		defer p.slow.Store(false)
		return p.failed(anything(func(j *messages.Job) {
			j.Image, j.Update.Timeout = p.push("late", "amd64", 20<<20), messages.Duration(time.Second)
		}), "still preparing", "its image")
	},
	messages.Superseded: func(p *provoker) answer {
		p.slow.Store(true)
		defer p.slow.Store(false)
		request := p.send(deployCommand(p.needing("bad", p.push("overtaken", "amd64", 20<<20))))
		p.instance("bad", "is being pulled", func(i messages.InstanceReport) bool { return i.State == messages.Preparing })
		p.do(deployCommand(anything(func(*messages.Job) {})))
		r := p.last(request)
		p.do(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "bad"}})
		return answer{r, messages.Failed, []string{"later command"}}
	},
	messages.Unavailable: func(p *provoker) answer { return p.onFullDisk() },
}

// passed expects a refusal that says of each node why it was passed over.
func (p *provoker) passed(j messages.Job, words ...string) answer {
	p.t.Helper()
	a := p.refused(deployCommand(j), words[0])
	said := map[messages.NodeID]string{}
	for _, n := range a.Nodes {
		said[n.Node] = n.Reason
		for _, w := range words {
			if n.Code != a.Code || !strings.Contains(n.Reason, w) {
				p.t.Errorf("%s was passed over with %s %q, want %s and %q", n.Node, n.Code, n.Reason, a.Code, w)
			}
		}
	}
	if len(said) != 2 || said[p.a] == "" || said[p.b] == "" {
		p.t.Errorf("reasons of %v, want of %s and %s", said, p.a, p.b)
	}
	return a
}

// asViewer commands as one who may only look.
func (p *provoker) asViewer() answer {
	p.t.Helper()
	viewer := mqtt.NewClient(mqtt.NewClientOptions().AddBroker("tcp://" + p.mqtt).SetUsername("viewer").SetAutoReconnect(false))
	if token := viewer.Connect(); !token.WaitTimeout(soon) || token.Error() != nil {
		p.t.Fatal(token.Error())
	}
	defer viewer.Disconnect(0)
	cmd := deployCommand(anything(func(*messages.Job) {}))
	cmd.RequestID = p.prefix + "viewer"
	if token := viewer.Subscribe("control/results/"+cmd.RequestID, 1, p.hear); !token.WaitTimeout(soon) || token.Error() != nil {
		p.t.Fatal(token.Error())
	}
	viewer.Publish("control/deploy", 1, false, messages.Encode(cmd))
	r := p.first(cmd.RequestID)
	if _, there := p.job(cmd.Job.Name); there {
		p.t.Error("the viewer's job is there")
	}
	return answer{r, messages.Refused, []string{"operator"}}
}

// onFullDisk commands a manager whose disk takes nothing more, and then one whose disk has room again.
func (p *provoker) onFullDisk() answer {
	p.t.Helper()
	needRoot(p.t)
	disk := filepath.Join(p.dir, "small-disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		p.t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=512k"); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		if err := syscall.Unmount(disk, 0); err != nil {
			p.t.Error(err)
		}
	})
	l := newLab(p.t, "--data", disk)
	defer l.end(l.manager)
	l.node("a")
	l.do(deployCommand(app("before", 1, nil)))
	if err := os.WriteFile(filepath.Join(disk, "ballast"), make([]byte, 1<<20), 0o600); err == nil {
		p.t.Fatal("the disk is not full")
	}
	big := anything(func(j *messages.Job) { j.Environment = map[string]string{"BIG": strings.Repeat("x", 30<<10)} })
	r := l.first(l.send(deployCommand(big)))
	if s, there := l.job("bad"); there {
		p.t.Errorf("a refused job is there: %+v", s)
	}
	if err := os.Remove(filepath.Join(disk, "ballast")); err != nil {
		p.t.Fatal(err)
	}
	l.eventually("commands are taken again", func() bool { return l.last(l.send(deployCommand(big))).Phase == messages.Done })
	l.waitUp("before")
	return answer{r, messages.Refused, []string{"disk", "try again"}}
}

// Every code of the contract comes about on real parts, with words that a person can act on.
func TestEveryCode(t *testing.T) {
	l := newLab(t)
	p := &provoker{lab: l, gallery: newGallery(l), a: l.node("a"), b: l.node("b")}
	for _, code := range messages.Codes() {
		provoke := provocations[code]
		if provoke == nil {
			t.Errorf("%s: nothing here provokes it", code)
			continue
		}
		began := time.Now()
		got := provoke(p)
		if got.Code != code || got.Phase != got.phase {
			t.Errorf("%s: got %s %s %q, want it %s", code, got.Phase, got.Code, got.Message, got.phase)
		}
		for _, w := range got.words {
			if !strings.Contains(got.Message, w) {
				t.Errorf("%s: message %q does not name %q", code, got.Message, w)
			}
		}
		t.Logf("%s after %s: %s", code, time.Since(began).Round(time.Millisecond), got.Message)
	}
	for code := range provocations {
		if !slices.Contains(messages.Codes(), code) {
			t.Errorf("%s is no code of the contract", code)
		}
	}
	if left := l.docker("ps", "-aq", "--filter", "label=skerry.node="+string(p.a)) + l.docker("ps", "-aq", "--filter", "label=skerry.node="+string(p.b)); left != "" {
		t.Errorf("containers left: %s", left)
	}
}

// A pull tells how far it is; deleted in the middle, it leaves nothing.
func TestDeleteDuringPull(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a := l.node("a")
	g := newGallery(l)
	image := g.push("slow", "amd64", 20<<20)
	g.slow.Store(true)
	deploy := l.send(deployCommand(g.needing("web", image)))
	var seen []int64
	l.instance("web", "tells how far its pull is", func(i messages.InstanceReport) bool {
		if p := i.Progress; p != nil && i.State == messages.Preparing && p.TotalBytes >= 20<<20 && p.DoneBytes > seenLast(seen) {
			seen = append(seen, p.DoneBytes)
		}
		return len(seen) >= 3
	})
	began := time.Now()
	l.do(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}})
	if took := time.Since(began); took > 25*time.Second { // the pull takes 50 s
		t.Errorf("the delete took %s: it waited for the pull", took)
	}
	if r := l.last(deploy); r.Phase != messages.Failed || r.Code != messages.Superseded {
		t.Errorf("deploy: got %s %s", r.Phase, r.Code)
	}
	l.eventually("Docker has hung up", func() bool { return g.serving.Load() == 0 })
	if left := l.docker("ps", "-aq", "--filter", "label=skerry.node="+string(a)); left != "" {
		t.Errorf("containers left: %s", left)
	}
	if exec.Command("docker", "image", "inspect", image).Run() == nil {
		t.Error("the image is there")
	}
	if _, there := l.job("web"); there {
		t.Error("the job is there")
	}
	err := filepath.Walk(filepath.Join(l.dir, "a"), func(path string, _ os.FileInfo, err error) error {
		if err == nil && strings.Contains(path, "web.") {
			t.Errorf("the engine keeps %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func seenLast(seen []int64) int64 {
	if len(seen) == 0 {
		return 0
	}
	return seen[len(seen)-1]
}
