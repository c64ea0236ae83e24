package bed

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"krustlet.dev/tests/cluster/controlplane"
)

// krustlet returns the program under test: $KRUSTLET_BIN, or else what cargo
// builds from this checkout in the dev profile.
func krustlet(ctx context.Context, root string) (string, error) {
	if given := os.Getenv("KRUSTLET_BIN"); given != "" {
		program, err := filepath.Abs(given)
		if err != nil {
			return "", err
		}
		if _, err := os.Stat(program); err != nil {
			return "", fmt.Errorf("KRUSTLET_BIN: %w", err)
		}
		return program, nil
	}
	build := exec.CommandContext(ctx, "cargo", "build", "--locked", "--package", "krustlet")
	build.Dir = root
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		return "", fmt.Errorf("cargo build: %w", err)
	}
	target := os.Getenv("CARGO_TARGET_DIR")
	if target == "" {
		target = "target"
	}
	if !filepath.IsAbs(target) {
		target = filepath.Join(root, target)
	}
	return filepath.Join(target, "debug", "krustlet"), nil
}

// RegistryFlag lets krustlet speak plain HTTP to the cluster's registries, which
// have no certificates.
func (b *Bed) RegistryFlag() string { return registryFlag + b.cluster.KrustletRegistries() }

// RegistryFlagFor is the same with a configuration of the test's own.
func (b *Bed) RegistryFlagFor(t testing.TB, configuration any) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "registries.yaml")
	if err := os.WriteFile(file, encode(t, configuration), 0o644); err != nil {
		t.Fatal(err)
	}
	return registryFlag + file
}

const registryFlag = "--registry-config="

func isRegistryFlag(arg string) bool { return strings.HasPrefix(arg, registryFlag) }

// SecureRegistry starts a registry that speaks TLS, for one test.
func (b *Bed) SecureRegistry(t testing.TB) *controlplane.SecureRegistry {
	t.Helper()
	started, err := b.cluster.StartSecureRegistry(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(started.Stop)
	return started
}
