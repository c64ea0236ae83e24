package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"krustlet.dev/tests/cluster/room"
)

type object = map[string]any

// registryConfig is the configuration of the registry of this name.
func (c *Cluster) registryConfig(name string) string { return filepath.Join(c.Dir, name+".yaml") }

func (c *Cluster) registryCommand(name string) room.Command {
	return room.Command{
		Name: name, Path: c.Program("registry"), Args: []string{"serve", c.registryConfig(name)}, Log: c.Log(name),
	}
}

// registrySettings is the configuration of an open registry that speaks plain HTTP.
func (c *Cluster) registrySettings(name string, port int) object {
	return object{
		"version": "0.1",
		"log":     object{"level": "info", "accesslog": object{"disabled": false}},
		"storage": object{
			"filesystem": object{"rootdirectory": filepath.Join(c.Dir, name)},
			"delete":     object{"enabled": true},
		},
		"http": object{"addr": fmt.Sprintf("0.0.0.0:%d", port), "secret": "of no use with one instance"},
	}
}

// SecureRegistry is an open registry that speaks TLS. Only who is told of its
// authority trusts it.
type SecureRegistry struct {
	Host      string // host and port
	Authority string // file with the authority's certificate
	process   *room.Process
}

// StartSecureRegistry starts one, beside the cluster's own; there is one at a time.
func (c *Cluster) StartSecureRegistry(ctx context.Context) (*SecureRegistry, error) {
	const name = "secure"
	authority, file, err := c.NewAuthority(name + "-ca")
	if err != nil {
		return nil, err
	}
	pair, err := authority.Server("registry", nil, []netip.Addr{c.Room.Address(1)})
	if err != nil {
		return nil, err
	}
	settings := c.registrySettings(name, securePort)
	settings["http"].(object)["tls"] = object{
		"certificate": c.keys.file(name + ".crt"), "key": c.keys.file(name + ".key"),
	}
	text, err := json.Marshal(settings)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(
		pair.write(c.keys.dir, name),
		os.WriteFile(c.registryConfig(name), text, 0o644),
		os.MkdirAll(filepath.Join(c.Dir, name), 0o700),
	); err != nil {
		return nil, err
	}
	process, err := c.Room.Start(c.registryCommand(name))
	if err != nil {
		return nil, err
	}
	started := &SecureRegistry{
		Host: fmt.Sprintf("%s:%d", c.Room.Address(1), securePort), Authority: file, process: process,
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := answers(ctx, process, file, "https://"+started.Host+"/v2/"); err != nil {
		started.Stop()
		return nil, err
	}
	return started, nil
}

// Stop ends it.
func (r *SecureRegistry) Stop() { r.process.Kill() }
