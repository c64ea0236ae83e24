package bed

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
func (b *Bed) RegistryFlag() string { return "--registry-config=" + b.cluster.KrustletRegistries() }
