package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"krustlet.dev/tests/cluster/toolchain"
)

// asCommand makes the test program the command, for itself and for what it starts.
const asCommand = "KRUSTLET_TESTBED_COMMAND"

// limit bounds one command: starting a control plane on a loaded machine, once
// its programs are built.
const limit = 15 * time.Minute

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// What the README here tells a developer to do: start, use what is printed, stop.
func TestADeveloperGetsAClusterToUseByHand(t *testing.T) {
	name := fmt.Sprintf("test-%d", os.Getpid())
	cache, err := toolchain.Cache()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = testbed("down", "-name", name) // stopped already, unless the test failed
		if !t.Failed() {
			_ = os.RemoveAll(filepath.Join(cache, "clusters", name))
		}
	})
	printed, err := testbed("up", "-d", "-name", name)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := testbed("up", "-d", "-name", name); err == nil || !strings.Contains(err.Error(), "is running already") {
		t.Errorf("a second one: %q, %v", again, err)
	}

	// As a shell does that is given what was printed: eval "$(testbed up -d)".
	shell := func(script string) (string, error) {
		return command("sh", []string{"-c", `eval "$PRINTED"; ` + script}, "PRINTED="+printed)
	}
	for _, use := range []struct{ script, want string }{
		{"kubectl get namespace kube-system --output=name", "namespace/kube-system\n"},
		{"kubectl get runtimeclass wasm --output=name", "runtimeclass.node.k8s.io/wasm\n"},
		{`$BED grep -c "$REGISTRY" "$KRUSTLET_REGISTRY_CONFIG"`, "1\n"},
	} {
		if out, err := shell(use.script); err != nil || out != use.want {
			t.Errorf("%s: %q, %v", use.script, out, err)
		}
	}
	kubeconfig, err := testbed("kubeconfig", "-name", name, "wasm-1")
	if err != nil {
		t.Fatal(err)
	}
	who, err := shell("kubectl --kubeconfig=" + strings.TrimSpace(kubeconfig) + " auth whoami --output=jsonpath={.status.userInfo.username}")
	if err != nil || who != "system:node:wasm-1" {
		t.Errorf("the node's kubeconfig: %q, %v", who, err)
	}

	if _, err := testbed("down", "-name", name); err != nil {
		t.Fatal(err)
	}
	if out, err := shell("kubectl get namespaces --request-timeout=5s"); err == nil {
		t.Errorf("it still answers: %s", out)
	}
	if out, err := testbed("down", "-name", name); err == nil || !strings.Contains(err.Error(), "no cluster is running") {
		t.Errorf("a second down: %q, %v", out, err)
	}
}

func TestTheCommandSaysHowItIsUsed(t *testing.T) {
	for _, args := range [][]string{{}, {"sideways"}, {"kubeconfig"}, {"down", "-name", ".."}} {
		if out, err := testbed(args...); err == nil || !strings.Contains(err.Error(), "testbed: ") {
			t.Errorf("%v: %q, %v", args, out, err)
		}
	}
}

// testbed runs the command and returns what it printed for the shell.
func testbed(args ...string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	return command(self, args, asCommand+"=1")
}

// command runs a program and returns its standard output; the error tells what it
// wrote to standard error.
func command(program string, args []string, env ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), env...)
	stdout, stderr := &bytes.Buffer{}, &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
