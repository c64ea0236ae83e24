package controlplane

import (
	"fmt"
	"path/filepath"
	"strings"

	"krustlet.dev/tests/cluster/room"
)

func (c *Cluster) command(program string, args ...string) room.Command {
	return room.Command{Name: program, Path: c.Program(program), Args: args, Log: c.Log(program)}
}

func (c *Cluster) etcdURL() string { return fmt.Sprintf("http://%s:%d", c.Room.Address(1), etcdPort) }

func (c *Cluster) etcdCommand() room.Command {
	peer := fmt.Sprintf("http://127.0.0.1:%d", etcdPeerPort)
	return c.command("etcd",
		"--name=testbed",
		"--data-dir="+filepath.Join(c.Dir, "etcd"),
		"--listen-client-urls="+c.etcdURL(),
		"--advertise-client-urls="+c.etcdURL(),
		"--listen-peer-urls="+peer,
		"--initial-advertise-peer-urls="+peer,
		"--initial-cluster=testbed="+peer,
		// The data need not outlive the machine's next crash.
		"--unsafe-no-fsync",
	)
}

func (c *Cluster) apiServer() room.Command {
	return c.command("kube-apiserver",
		"--etcd-servers="+c.etcdURL(),
		"--bind-address=0.0.0.0",
		fmt.Sprintf("--secure-port=%d", apiPort),
		"--advertise-address="+c.Room.Address(1).String(),
		"--tls-cert-file="+c.keys.file("apiserver.crt"),
		"--tls-private-key-file="+c.keys.file("apiserver.key"),
		"--client-ca-file="+c.Authority(),

		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--enable-bootstrap-token-auth=true",
		"--allow-privileged=true",

		"--service-account-issuer=https://kubernetes.default.svc."+domain,
		"--service-account-key-file="+c.keys.file("tokens.pub"),
		"--service-account-signing-key-file="+c.keys.file("tokens.key"),
		"--service-cluster-ip-range="+strings.Join(c.ServiceRanges(), ","),

		// By address: no name server here knows a node's host name.
		"--kubelet-preferred-address-types=InternalIP",
		"--kubelet-client-certificate="+c.keys.file("apiserver-kubelet-client.crt"),
		"--kubelet-client-key="+c.keys.file("apiserver-kubelet-client.key"),

		"--requestheader-client-ca-file="+c.keys.file(proxyAuthority+".crt"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file="+c.keys.file("front-proxy-client.crt"),
		"--proxy-client-key-file="+c.keys.file("front-proxy-client.key"),
		// No kube-proxy is here: webhooks are called at their endpoints' addresses.
		"--enable-aggregator-routing=true",

		"--audit-policy-file="+c.keys.file("audit-policy.yaml"),
		"--audit-log-path="+c.AuditLog(),
		// A request is in the log before it is answered, so that a test that
		// saw the answer finds it there.
		"--audit-log-mode=blocking-strict",
	)
}

func (c *Cluster) controllerManager() room.Command {
	kubeconfig := c.keys.file("controller-manager.kubeconfig")
	// Sixteen nodes of 4096 addresses each.
	masks := []string{"--node-cidr-mask-size=20"}
	if c.Room.NoIPv6() == nil {
		masks = []string{"--node-cidr-mask-size-ipv4=20", "--node-cidr-mask-size-ipv6=64"}
	}
	return c.command("kube-controller-manager", append(masks,
		"--kubeconfig="+kubeconfig,
		"--authentication-kubeconfig="+kubeconfig,
		"--authorization-kubeconfig="+kubeconfig,
		"--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", managerPort),
		"--leader-elect=false",
		"--use-service-account-credentials=true",
		"--controllers=*,bootstrap-signer-controller,token-cleaner-controller",
		"--cluster-signing-cert-file="+c.Authority(),
		"--cluster-signing-key-file="+c.keys.file(clusterAuthority+".key"),
		"--root-ca-file="+c.Authority(),
		"--service-account-private-key-file="+c.keys.file("tokens.key"),
		"--allocate-node-cidrs=true",
		"--cluster-cidr="+strings.Join(c.PodRanges(), ","),
		"--service-cluster-ip-range="+strings.Join(c.ServiceRanges(), ","),
		// A lost node is noticed as fast as the kubelet's lease allows.
		"--node-monitor-period=2s",
		"--node-monitor-grace-period=40s",
	)...)
}

func (c *Cluster) schedulerCommand() room.Command {
	kubeconfig := c.keys.file("scheduler.kubeconfig")
	return c.command("kube-scheduler",
		"--kubeconfig="+kubeconfig,
		"--authentication-kubeconfig="+kubeconfig,
		"--authorization-kubeconfig="+kubeconfig,
		"--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", schedPort),
		"--leader-elect=false",
	)
}
