package docker

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/registry"
)

// credentialFile is the part of a docker config.json that is read here. Credential helpers are programs that a node does not have.
type credentialFile struct {
	Auths map[string]struct {
		Auth          string `json:"auth"` // base64 of user:password
		IdentityToken string `json:"identitytoken"`
	} `json:"auths"`
}

// credentials returns what a pull of this image sends along; empty where the file has nothing for its registry.
func (d *Driver) credentials(named reference.Named) (string, error) {
	if d.cfg.Credentials == "" {
		return "", nil
	}
	f, err := os.Open(d.cfg.Credentials)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("registry credentials: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return "", fmt.Errorf("registry credentials: %w", err)
	}
	auth, err := findCredentials(raw, reference.Domain(named))
	if err != nil {
		return "", fmt.Errorf("registry credentials in %s: %w", d.cfg.Credentials, err)
	}
	return auth, nil
}

// findCredentials never quotes the file in its errors: it holds passwords. Of keys that mean the same registry its name itself goes first.
func findCredentials(raw []byte, domain string) (string, error) {
	var file credentialFile
	if json.Unmarshal(raw, &file) != nil {
		return "", errors.New(`want a JSON object {"auths":{"registry":{"auth":"…"}}}`)
	}
	keys := slices.Sorted(maps.Keys(file.Auths))
	if _, ok := file.Auths[domain]; ok {
		keys = append([]string{domain}, keys...)
	}
	for _, key := range keys {
		if registryOf(key) != domain {
			continue
		}
		entry := file.Auths[key]
		decoded, err := base64.StdEncoding.DecodeString(entry.Auth)
		user, password, ok := strings.Cut(strings.TrimRight(string(decoded), "\x00"), ":")
		if err != nil || (!ok && entry.IdentityToken == "") {
			return "", fmt.Errorf("auths[%.255q].auth: want base64 of user:password", key)
		}
		return registry.EncodeAuthConfig(registry.AuthConfig{
			Username: user, Password: password, IdentityToken: entry.IdentityToken, ServerAddress: key,
		})
	}
	return "", nil
}

// registryOf is the registry that a key of a config.json means: keys are host names, or URLs as docker login once wrote them.
func registryOf(key string) string {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	host, _, _ := strings.Cut(key, "/")
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		return "docker.io"
	}
	return host
}

func (d *Driver) adviseCredentials(named reference.Named) string {
	if d.cfg.Credentials == "" {
		return "give the node engine a docker config.json with credentials for " + reference.Domain(named)
	}
	return "put credentials for " + reference.Domain(named) + " into " + d.cfg.Credentials
}
