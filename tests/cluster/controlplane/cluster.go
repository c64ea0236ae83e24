// Package controlplane starts a real Kubernetes control plane, an open and a
// private registry beside it, and makes the credentials and files that people and nodes use. It
// starts no node: package bed does.
//
//	etcd ─┬─▶ kube-apiserver ─▶ kube-controller-manager, kube-scheduler ─▶ objects
//	      └─ registry, private registry (at the same time)
//
// RBAC, the Node authorizer and NodeRestriction are on, as in a cluster by
// kubeadm. Each start is a new, empty cluster.
package controlplane

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"krustlet.dev/tests/cluster/room"
)

const (
	domain = "cluster.local"
	// The first address of serviceRange is the Service `kubernetes`.
	serviceRange = "10.96.0.0/16"
	podRange     = "10.244.0.0/16"
	// The second family's, where the machine has it.
	serviceRange6 = "fd00:10:96::/112"
	podRange6     = "fd00:10:244::/56"
	// kubeletClient is who the API server is when it calls a node.
	kubeletClient = "kube-apiserver-kubelet-client"
)

// Ports in the room; nothing else is there to take them.
const (
	apiPort      = 6443
	etcdPort     = 2379
	etcdPeerPort = 2380
	managerPort  = 10257
	schedPort    = 10259
	registryPort = 5000
	privatePort  = 5001
	securePort   = 5002
)

// A user of the private registry.
const (
	PrivateUser     = "ann"
	PrivatePassword = "open-sesame"
	// privateUsers is its htpasswd file: the one user above, by the cheapest bcrypt.
	privateUsers = PrivateUser + ":$2b$04$krustletTestRegistryuO/BayYNuylX3dzisOXq1G2X4zXAYkLDu\n"
)

//go:embed manifests
var manifests embed.FS

// Config says what to start and where.
type Config struct {
	Bin string // folder of the programs (toolchain.Build)
	Dir string // folder for data, keys and logs; made, and emptied of an earlier cluster
	// Manifests are files to apply once the API server answers.
	Manifests []string
}

// Cluster is a running control plane. Close it.
type Cluster struct {
	Room *room.Room
	Dir  string
	bin  string
	keys *keys

	etcd, api, manager, scheduler, registry, private *room.Process

	mu     sync.Mutex
	starts []Window
}

// Start starts a control plane and returns when pods can be created in the
// namespace `default`. It takes about ten seconds of an idle two-core machine.
func Start(ctx context.Context, config Config) (*Cluster, error) {
	dir, err := filepath.Abs(config.Dir)
	if err != nil {
		return nil, err
	}
	c := &Cluster{Dir: dir, bin: config.Bin}
	for _, old := range []string{"pki", "etcd", "registry", "private", "logs"} {
		if err := os.RemoveAll(filepath.Join(dir, old)); err != nil {
			return nil, err
		}
	}
	for _, made := range []string{"etcd", "registry", "private", "logs"} {
		if err := os.MkdirAll(filepath.Join(dir, made), 0o700); err != nil {
			return nil, err
		}
	}
	if c.Room, err = room.Open(); err != nil {
		return nil, err
	}
	if err := c.start(ctx, config.Manifests); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Close stops everything that runs in the cluster's room. Data and logs stay.
func (c *Cluster) Close() { c.Room.Close() }

// Server is the API server's address, from the room and from the host.
func (c *Cluster) Server() string { return fmt.Sprintf("https://%s:%d", c.Room.Address(1), apiPort) }

// Registry is the host and port of the registry, which speaks plain HTTP.
func (c *Cluster) Registry() string { return fmt.Sprintf("%s:%d", c.Room.Address(1), registryPort) }

// PrivateRegistry is the host and port of the registry that knows PrivateUser only.
// It speaks plain HTTP too.
func (c *Cluster) PrivateRegistry() string {
	return fmt.Sprintf("%s:%d", c.Room.Address(1), privatePort)
}

// KrustletRegistries is the file that lets krustlet speak to the registries
// (`--registry-config`).
func (c *Cluster) KrustletRegistries() string {
	return filepath.Join(c.Dir, "krustlet-registries.yaml")
}

// AdminKubeconfig is the kubeconfig of a user that may do everything.
func (c *Cluster) AdminKubeconfig() string { return c.keys.file(adminName + ".kubeconfig") }

// BootstrapKubeconfig is the kubeconfig by which a node may ask for its certificate.
func (c *Cluster) BootstrapKubeconfig() string { return c.keys.file("bootstrap.kubeconfig") }

// Authority is the file with the certificate of the cluster's authority.
func (c *Cluster) Authority() string { return c.keys.file(clusterAuthority + ".crt") }

// AuditLog is the file in which the API server records every request.
func (c *Cluster) AuditLog() string { return filepath.Join(c.Dir, "logs", "audit.log") }

// Log is the file for the output of a program of this name.
func (c *Cluster) Log(name string) string { return filepath.Join(c.Dir, "logs", name+".log") }

// ServiceRanges and PodRanges are the cluster's, IPv4's first; those of IPv6 are
// missing where the room has none.
func (c *Cluster) ServiceRanges() []string { return c.families(serviceRange, serviceRange6) }

// PodRanges: see ServiceRanges.
func (c *Cluster) PodRanges() []string { return c.families(podRange, podRange6) }

func (c *Cluster) families(v4, v6 string) []string {
	if c.Room.NoIPv6() != nil {
		return []string{v4}
	}
	return []string{v4, v6}
}

// Program is the path of one of toolchain.Programs.
func (c *Cluster) Program(name string) string { return filepath.Join(c.bin, name) }

// NodeKubeconfig makes the kubeconfig of the node with this name, signed by the
// cluster's authority.
func (c *Cluster) NodeKubeconfig(name string) (string, error) {
	return NodeKubeconfig(c.Dir, c.Server(), name)
}

// NodeKubeconfig does the same for a cluster that another process runs in dir.
func NodeKubeconfig(dir, server, name string) (string, error) {
	folder := filepath.Join(dir, "pki")
	authority, err := loadAuthority(folder, clusterAuthority)
	if err != nil {
		return "", err
	}
	held := &keys{dir: folder, cluster: authority}
	return held.writeKubeconfig(server, "node-"+name, "system:node:"+name, "system:nodes")
}

// ClientCertificate is a certificate that the cluster takes for this user's.
func (c *Cluster) ClientCertificate(user string, groups ...string) (Pair, error) {
	return c.keys.cluster.Client(user, groups...)
}

// NewAuthority makes an authority of which the cluster knows nothing, and the
// file with its certificate.
func (c *Cluster) NewAuthority(name string) (*Authority, string, error) {
	authority, err := newAuthority(c.keys.dir, name, name)
	return authority, c.keys.file(name + ".crt"), err
}

// Kubectl runs kubectl as the administrator and returns its standard output;
// input goes to its standard input.
func (c *Cluster) Kubectl(ctx context.Context, input string, args ...string) (string, error) {
	return kubectl(ctx, c.Program("kubectl"), c.AdminKubeconfig(), input, args...)
}

// Window is a stretch of time.
type Window struct{ From, To time.Time }

// Starts are the times in which the API server was starting. Until it is ready
// it refuses what it will allow then: the Node authorizer knows no pods yet.
func (c *Cluster) Starts() []Window {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Window(nil), c.starts...)
}

// StopAPIServer kills the API server, as a machine that loses its power does.
func (c *Cluster) StopAPIServer() { c.api.Kill() }

// StartAPIServer starts it again and waits until it answers.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	if running, _ := c.api.Running(); running {
		return errors.New("the API server is running")
	}
	return c.launchAPIServer(ctx)
}

func (c *Cluster) launchAPIServer(ctx context.Context) error {
	from := time.Now()
	var err error
	if c.api, err = c.Room.Start(c.apiServer()); err != nil {
		return err
	}
	if err := c.answers(ctx, c.api, c.Server()+"/readyz"); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.starts = append(c.starts, Window{From: from, To: time.Now()})
	return nil
}

// PauseAPIServer stops the API server in its tracks: connections stay open and
// nothing answers, as with a network that drops everything.
func (c *Cluster) PauseAPIServer() error { return c.api.Signal(syscall.SIGSTOP) }

// ResumeAPIServer ends the pause.
func (c *Cluster) ResumeAPIServer() error { return c.api.Signal(syscall.SIGCONT) }

// PauseControllers stops the controller manager in its tracks: nobody gives nodes
// their podCIDRs, takes their taints away, or does anything else of its kind.
func (c *Cluster) PauseControllers() error { return c.manager.Signal(syscall.SIGSTOP) }

// ResumeControllers ends the pause.
func (c *Cluster) ResumeControllers() error { return c.manager.Signal(syscall.SIGCONT) }

func (c *Cluster) start(ctx context.Context, extra []string) error {
	// No step takes a tenth of this; a machine under load may be that slow.
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()

	service := netip.MustParsePrefix(serviceRange).Addr().Next()
	addresses := []netip.Addr{netip.MustParseAddr("127.0.0.1"), service, c.Room.Address(1)}
	var err error
	if c.keys, err = makeKeys(filepath.Join(c.Dir, "pki"), c.Server(), addresses); err != nil {
		return err
	}
	token := newBootstrapToken()
	if _, err := c.keys.save(c.Server(), "bootstrap", "kubelet-bootstrap", login{token: token.String()}); err != nil {
		return err
	}
	if err := c.writeFiles(); err != nil {
		return err
	}

	if c.etcd, err = c.Room.Start(c.etcdCommand()); err != nil {
		return err
	}
	if c.registry, err = c.Room.Start(c.registryCommand("registry")); err != nil {
		return err
	}
	if c.private, err = c.Room.Start(c.registryCommand("private")); err != nil {
		return err
	}
	if err := c.answers(ctx, c.etcd, c.etcdURL()+"/health"); err != nil {
		return err
	}
	if err := c.launchAPIServer(ctx); err != nil {
		return err
	}
	if c.manager, err = c.Room.Start(c.controllerManager()); err != nil {
		return err
	}
	if c.scheduler, err = c.Room.Start(c.schedulerCommand()); err != nil {
		return err
	}
	if err := c.apply(ctx, token, extra); err != nil {
		return err
	}
	if err := c.answers(ctx, c.registry, "http://"+c.Registry()+"/v2/"); err != nil {
		return err
	}
	// Without a login it answers at its root only.
	if err := c.answers(ctx, c.private, "http://"+c.PrivateRegistry()+"/"); err != nil {
		return err
	}
	// Pods are refused until their namespace has these two.
	for _, object := range []string{"serviceaccount/default", "configmap/kube-root-ca.crt"} {
		if err := retry(ctx, c.manager, func() error {
			_, err := c.Kubectl(ctx, "", "--namespace=default", "get", object)
			return err
		}); err != nil {
			return err
		}
	}
	running, err := c.scheduler.Running()
	if !running {
		return err
	}
	return nil
}

func (c *Cluster) apply(ctx context.Context, token bootstrapToken, extra []string) error {
	text, err := manifests.ReadFile("manifests/bootstrap.yaml")
	if err != nil {
		return err
	}
	filled := strings.NewReplacer("TOKEN_ID", token.id, "TOKEN_SECRET", token.secret).Replace(string(text))
	all := []string{filled}
	for _, path := range extra {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		all = append(all, string(text))
	}
	return retry(ctx, c.api, func() error {
		_, err := c.Kubectl(ctx, strings.Join(all, "\n---\n"), "apply", "-f", "-")
		return err
	})
}

// writeFiles writes the configuration that the programs read.
func (c *Cluster) writeFiles() error {
	policy, err := manifests.ReadFile("manifests/audit-policy.yaml")
	if err != nil {
		return err
	}
	open := c.registrySettings("registry", registryPort)
	private := c.registrySettings("private", privatePort)
	private["auth"] = object{"htpasswd": object{"realm": "testbed", "path": c.keys.file("private.htpasswd")}}
	registry, err := json.Marshal(open)
	if err != nil {
		return err
	}
	guarded, err := json.Marshal(private)
	if err != nil {
		return err
	}
	plain, err := json.Marshal(object{"plainHTTP": []string{c.Registry(), c.PrivateRegistry()}})
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(c.keys.file("audit-policy.yaml"), policy, 0o644),
		os.WriteFile(c.KrustletRegistries(), plain, 0o644),
		os.WriteFile(c.registryConfig("registry"), registry, 0o644),
		os.WriteFile(c.registryConfig("private"), guarded, 0o644),
		os.WriteFile(c.keys.file("private.htpasswd"), []byte(privateUsers), 0o600),
	)
}
