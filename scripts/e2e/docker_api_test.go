package e2e

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/client"
)

// dockerClient asks the Docker engine of this process's environment. Where time counts, tests ask by it and not by the program docker, each run of
// which takes about as much of the processors as the start of a container.
var dockerClient = sync.OnceValues(func() (*client.Client, error) {
	return client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
})

// dockerAPI is dockerClient for a test.
func dockerAPI(t *testing.T) *client.Client {
	t.Helper()
	cli, err := dockerClient()
	if err != nil {
		t.Fatal(err)
	}
	return cli
}

// dockerAnswers says whether there is a Docker engine that answers: one that starts takes connections long before.
func dockerAnswers(t *testing.T) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err := dockerAPI(t).Ping(ctx)
	return err == nil
}

// labelled are the containers with a label, ended ones only where all says so.
func labelled(t *testing.T, label string, all bool) ([]container.Summary, error) {
	t.Helper()
	return dockerAPI(t).ContainerList(t.Context(), container.ListOptions{All: all, Filters: filters.NewArgs(filters.Arg("label", label))})
}
